// Vectors of the processor's width.

#pragma once

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pangu {

#if defined(__AVX512F__)
inline constexpr int64_t kLanes = 16;
#else
inline constexpr int64_t kLanes = 8;
#endif
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

template <class V>
inline V load(const void *from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Keeps GCC from reading x from memory again at each use.
inline Floats in_register(Floats x) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(x));
#elif defined(__AVX2__)
  __asm__("" : "+x"(x));
#endif
  return x;
}

// A vector of equal numbers. `Floats{} + x` would be that, too, but after an addition, because it turns -0 into 0.
inline Floats all(float x) { return x - Floats{}; }

inline void store(Floats x, float *to) { std::memcpy(to, &x, sizeof x); }

// One step towards the sums of two vectors' numbers: adds the halves of each group of 2 * kHalf numbers. The groups of
// x come before those of y in the result.
template <int kHalf>
inline Floats folded(Floats x, Floats y) {
  Ints first, second;
  for (int i = 0; i < kLanes; ++i) {
    const int wide = 2 * i % kLanes, from = wide / (2 * kHalf) * (2 * kHalf) + i % kHalf;
    first[i] = from + (i < kLanes / 2 ? 0 : kLanes);
    second[i] = first[i] + kHalf;
  }
  return __builtin_shuffle(x, y, first) + __builtin_shuffle(x, y, second);
}

// Number i of the result is the sum of vector i. A vector's sum is the same whatever the others are.
template <int kCount, int kHalf = kLanes / 2>
inline Floats sums_of(const Floats *vectors) {
  constexpr int kPairs = (kCount + 1) / 2;
  Floats pairs[kPairs];
#pragma GCC unroll 16
  for (int i = 0; i < kPairs; ++i) {
    pairs[i] = folded<kHalf>(vectors[2 * i], vectors[2 * i + 1 < kCount ? 2 * i + 1 : 2 * i]);
  }
  if constexpr (kHalf == 1) {
    return pairs[0];
  } else {
    return sums_of<kPairs, kHalf / 2>(pairs);
  }
}

inline float sum(Floats x) { return sums_of<1>(&x)[0]; }

// Calls function(integral_constant<int, n>), where n is `count`, but at most kMost.
template <int kMost, class Function>
inline void with_constant(int64_t count, const Function &function) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_constant<kMost - 1>(count, function);
  }
  function(std::integral_constant<int, kMost>());
}

}  // namespace pangu
