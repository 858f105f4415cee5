// Vectors of the processor's width.

#pragma once

#include "common.h"

#if defined(__AVX512F__) || defined(__AVXVNNI__)
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
#endif
  return x;
}

inline void store(Floats x, float *to) { std::memcpy(to, &x, sizeof x); }

inline float sum(Floats x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

// Calls function(integral_constant<int, n>), where n is `count`, but at most kMost.
template <int kMost, class Function>
inline void with_constant(int64_t count, const Function &function) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_constant<kMost - 1>(count, function);
  }
  function(std::integral_constant<int, kMost>());
}

}  // namespace pangu
