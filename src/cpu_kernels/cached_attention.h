// Attention of one head to the keys and values in a KV cache: softmax(factor * query keys^T) values.

#pragma once

#include "vectors.h"

namespace pangu {

// The keys and values (capacity, d) of one head of a text.
struct CachedHead {
  const float *keys, *values;
  int64_t size;  // d
};

// Memory of one thread.
struct AttentionScratch {
  std::vector<Floats> weights;
  std::vector<float> scores;

  explicit AttentionScratch(int64_t capacity) : weights(capacity), scores(capacity) {}
};

// One token attends to the first `length` keys and values. `query` (d) becomes the weighted sum of the values.
inline void attend_token(const CachedHead &head, int64_t length, float factor, float *query,
                         AttentionScratch &scratch) {
  float *scores = scratch.scores.data(), total = 0;
  for (int64_t k = 0; k < head.size; ++k) query[k] *= factor;
  for (int64_t i = 0; i < length; ++i) scores[i] = dot(query, head.keys + i * head.size, head.size);
  const float largest = maximum(scores, length);
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < length; ++i) total += scores[i] = exponential(scores[i] - largest);
  std::fill_n(query, head.size, 0.0f);
  for (int64_t i = 0; i < length; ++i) {
#pragma omp simd
    for (int64_t k = 0; k < head.size; ++k) query[k] += scores[i] * head.values[i * head.size + k];
  }
  for (int64_t k = 0; k < head.size; ++k) query[k] /= total;
}

// sums (kCount) of weights (length) times features [first, first + kCount) of the values
template <int kCount>
inline void add_values(const CachedHead &head, int64_t first, const Floats *weights, int64_t length, Floats *mixed,
                       Floats total) {
  Floats sums[kCount] = {};
  for (int64_t i = 0; i < length; ++i) {
    for (int j = 0; j < kCount; ++j) sums[j] += weights[i] * head.values[i * head.size + first + j];
  }
  for (int j = 0; j < kCount; ++j) mixed[first + j] = sums[j] / total;
}

// The lanes are tokens of one text. The token of a lane attends to the keys up to its place, and `length` covers the
// last of them. `queries` and `mixed` have d vectors, and may be the same.
inline void attend_tile(const CachedHead &head, Ints places, int32_t length, float factor, const Floats *queries,
                        Floats *mixed, AttentionScratch &scratch) {
  const Floats masked = all(-1e30f);
  Floats *weights = scratch.weights.data(), largest = masked, total{};
  for (int32_t i = 0; i < length; i += 8) {
    const float *key[8];  // past the end, the last key is repeated
    for (int32_t j = 0; j < 8; ++j) key[j] = head.keys + std::min(i + j, length - 1) * head.size;
    Floats scores[8] = {};
    for (int64_t k = 0; k < head.size; ++k) {
      for (int j = 0; j < 8; ++j) scores[j] += queries[k] * key[j][k];
    }
    for (int32_t j = 0; j < 8 && i + j < length; ++j) {
      weights[i + j] = i + j <= places ? scores[j] * factor : masked;
      largest = weights[i + j] > largest ? weights[i + j] : largest;
    }
  }
  for (int32_t i = 0; i < length; ++i) total += weights[i] = exponential<Floats, Ints>(weights[i] - largest);
  for (int64_t k = 0; k < head.size; k += 8) {
    with_constant<8>(head.size - k, [&](auto count) { add_values<count()>(head, k, weights, length, mixed, total); });
  }
}

}  // namespace pangu
