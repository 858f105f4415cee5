// Products of small matrices that are in a processor's caches: float32, row-major, in tiles that fit its registers.

#pragma once

#include "vectors.h"

namespace pangu {

#if defined(__AVX512F__)
inline constexpr int64_t kTileWidth = 4;
#else
inline constexpr int64_t kTileWidth = 2;
#endif
inline constexpr int64_t kTileHeight = 6;  // with kTileWidth vectors each, and room for what is multiplied

inline int64_t padded_to_vector(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

inline float largest_of(Floats x) {
  float largest = x[0];
  for (int64_t i = 1; i < kLanes; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// Transposes kLanes rows that are `stride` apart. Row i of the result begins at to + i * to_stride. Swaps ever smaller
// blocks beside the diagonal.
inline void transpose_tile(const float *from, int64_t stride, float *to, int64_t to_stride) {
  Floats rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load<Floats>(from + i * stride);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half; half /= 2) {
    Ints low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i & half ? kLanes + i - half : i;
      high[i] = i & half ? kLanes + i : i + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & half) continue;
      const Floats upper = rows[i], lower = rows[i + half];
      rows[i] = __builtin_shuffle(upper, lower, low);
      rows[i + half] = __builtin_shuffle(upper, lower, high);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(rows[i], to + i * to_stride);
}

// A matrix whose element (i, k) is data[i * row + k * column].
struct Strided {
  const float *data;
  int64_t row, column;
};

// c (Rows, Vectors * kLanes) = a (Rows, depth) b (depth, Vectors * kLanes), or += with `adds`.
template <int Rows, int Vectors>
[[gnu::noinline]] void multiply_tile(Strided a, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t depth,
                                     bool adds) {
  Floats sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      sums[i][j] = adds ? load<Floats>(c + i * c_row + j * kLanes) : Floats{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) row[j] = in_register(load<Floats>(b + k * b_row + j * kLanes));
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Floats factor = all(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(sums[i][j], c + i * c_row + j * kLanes);
  }
}

template <int Vectors>
inline void multiply_columns(Strided a, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t rows,
                             int64_t depth, bool adds) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return Strided{a.data + row * a.row, a.row, a.column}; };
  for (; i + kTileHeight <= rows; i += kTileHeight) {
    multiply_tile<kTileHeight, Vectors>(at(i), b, b_row, c + i * c_row, c_row, depth, adds);
  }
  for (; i + 2 <= rows; i += 2) multiply_tile<2, Vectors>(at(i), b, b_row, c + i * c_row, c_row, depth, adds);
  if (i < rows) multiply_tile<1, Vectors>(at(i), b, b_row, c + i * c_row, c_row, depth, adds);
}

// c (rows, columns) = a (rows, depth) b (depth, columns), or += with `adds`. columns is a multiple of kLanes; rows of
// b are b_row apart and those of c c_row.
inline void multiply(Strided a, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t rows, int64_t columns,
                     int64_t depth, bool adds) {
  int64_t j = 0;
  for (; j + kTileWidth * kLanes <= columns; j += kTileWidth * kLanes) {
    multiply_columns<kTileWidth>(a, b + j, b_row, c + j, c_row, rows, depth, adds);
  }
  for (; j < columns; j += kLanes) multiply_columns<1>(a, b + j, b_row, c + j, c_row, rows, depth, adds);
}

}  // namespace pangu
