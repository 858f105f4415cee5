// Attention of one head to the keys and values in a KV cache: softmax(factor * query keys^T) values.

#pragma once

#include "vectors.h"

namespace pangu {

// The keys and values (capacity, d) of one head of a text.
struct CachedHead {
  const float *keys, *values;
  int64_t size;  // d
};

// Tiles of tokens whose sums stay in registers together.
#if defined(__AVX512F__)
inline constexpr int kMostTiles = 1;
#else
inline constexpr int kMostTiles = 2;
#endif

// Memory of one thread.
struct AttentionScratch {
  std::vector<Floats> weights;
  std::vector<float> scores;

  explicit AttentionScratch(int64_t capacity) : weights(capacity * kMostTiles), scores(capacity) {}
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

// Keys, or features of the values, whose sums for kTiles tiles stay in registers.
template <int kTiles>
inline constexpr int kAtOnce = kTiles == 1 ? 8 : 6;

// mixed = weights (length, kTiles) times features [first, first + kCount) of the values, over the totals
template <int kTiles, int kCount>
inline void add_values(const CachedHead &head, int64_t first, const Floats *weights, int64_t length, Floats *mixed,
                       int64_t stride, const Floats *totals) {
  Floats sums[kCount][kTiles] = {};
  for (int64_t i = 0; i < length; ++i) {
    for (int j = 0; j < kCount; ++j) {
      const Floats value = all(head.values[i * head.size + first + j]);
      for (int tile = 0; tile < kTiles; ++tile) sums[j][tile] += weights[i * kTiles + tile] * value;
    }
  }
  for (int j = 0; j < kCount; ++j) {
    for (int tile = 0; tile < kTiles; ++tile) mixed[tile * stride + first + j] = sums[j][tile] / totals[tile];
  }
}

// scores (kCount, kTiles) = the keys [first, first + kCount) times the queries; past the last key it is repeated
template <int kTiles, int kCount>
inline void compute_scores(const CachedHead &head, int64_t first, int64_t last, const Floats *queries, int64_t stride,
                           Floats (&scores)[kCount][kTiles]) {
  const float *key[kCount];
  for (int j = 0; j < kCount; ++j) key[j] = head.keys + std::min(first + j, last) * head.size;
  Floats sums[kCount][kTiles] = {};
  for (int64_t k = 0; k < head.size; ++k) {
    Floats query[kTiles];
    for (int tile = 0; tile < kTiles; ++tile) query[tile] = load<Floats>(queries + tile * stride + k);
    for (int j = 0; j < kCount; ++j) {
      const Floats number = all(key[j][k]);
      for (int tile = 0; tile < kTiles; ++tile) sums[j][tile] += query[tile] * number;
    }
  }
  std::memcpy(scores, sums, sizeof sums);
}

// The lanes of a tile are tokens of one text. The token of a lane attends to the keys up to its place, and `length`
// covers the last of them. `queries` and `mixed` have d vectors for each tile, `stride` apart, and may be the same.
// What a token gets does not depend on the number of tiles.
template <int kTiles>
inline void attend_tiles(const CachedHead &head, const Ints *places, int32_t length, float factor,
                         const Floats *queries, Floats *mixed, int64_t stride, AttentionScratch &scratch) {
  constexpr int kCount = kAtOnce<kTiles>;
  const Floats masked = all(-1e30f);
  Floats *weights = scratch.weights.data(), largest[kTiles], total[kTiles] = {};
  std::fill_n(largest, kTiles, masked);
  for (int32_t i = 0; i < length; i += kCount) {
    Floats scores[kCount][kTiles];
    compute_scores(head, i, length - 1, queries, stride, scores);
    for (int32_t j = 0; j < kCount && i + j < length; ++j) {
      for (int tile = 0; tile < kTiles; ++tile) {
        Floats &weight = weights[(i + j) * kTiles + tile];
        weight = i + j <= places[tile] ? scores[j][tile] * factor : masked;
        largest[tile] = weight > largest[tile] ? weight : largest[tile];
      }
    }
  }
  for (int32_t i = 0; i < length; ++i) {
    for (int tile = 0; tile < kTiles; ++tile) {
      Floats &weight = weights[i * kTiles + tile];
      total[tile] += weight = exponential<Floats, Ints>(weight - largest[tile]);
    }
  }
  for (int64_t k = 0; k < head.size; k += kCount) {
    with_constant<kCount>(head.size - k, [&](auto count) {
      add_values<kTiles, count()>(head, k, weights, length, mixed, stride, total);
    });
  }
}

}  // namespace pangu
