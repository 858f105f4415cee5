// Vectors of floats, and products of small matrices that are in a processor's caches: float32, row-major, in tiles that
// fit its registers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace pangu {

#if defined(__AVX512F__)
inline constexpr int64_t kVector = 16, kTileVectors = 4;
#elif defined(__AVX__)
inline constexpr int64_t kVector = 8, kTileVectors = 2;
#else
inline constexpr int64_t kVector = 4, kTileVectors = 2;
#endif
inline constexpr int64_t kTileRows = 6;  // with kTileVectors vectors each, and room for what is multiplied
typedef float Floats __attribute__((vector_size(kVector * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kVector * sizeof(int32_t))));

inline int64_t padded_to_vector(int64_t count) { return (count + kVector - 1) / kVector * kVector; }

inline Floats load(const float *from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(Floats x, float *to) { std::memcpy(to, &x, sizeof x); }

inline float sum(Floats x) {
  float total = 0;
  for (int64_t i = 0; i < kVector; ++i) total += x[i];
  return total;
}

inline float largest_of(Floats x) {
  float largest = x[0];
  for (int64_t i = 1; i < kVector; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// Transposes kVector rows that are `stride` apart. Row i of the result begins at to + i * to_stride. Swaps ever smaller
// blocks beside the diagonal.
inline void transpose_tile(const float *from, int64_t stride, float *to, int64_t to_stride) {
  Floats rows[kVector];
#pragma GCC unroll 16
  for (int i = 0; i < kVector; ++i) rows[i] = load(from + i * stride);
#pragma GCC unroll 4
  for (int half = kVector / 2; half; half /= 2) {
    Ints low, high;
    for (int i = 0; i < kVector; ++i) {
      low[i] = i & half ? kVector + i - half : i;
      high[i] = i & half ? kVector + i : i + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kVector; ++i) {
      if (i & half) continue;
      const Floats upper = rows[i], lower = rows[i + half];
      rows[i] = __builtin_shuffle(upper, lower, low);
      rows[i + half] = __builtin_shuffle(upper, lower, high);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kVector; ++i) store(rows[i], to + i * to_stride);
}

// A matrix whose element (i, k) is data[i * row + k * column].
struct Strided {
  const float *data;
  int64_t row, column;
};

// c (Rows, Vectors * kVector) = a (Rows, depth) b (depth, Vectors * kVector), or += with `adds`.
template <int Rows, int Vectors>
inline void multiply_tile(Strided a, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t depth, bool adds) {
  Floats sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      sums[i][j] = adds ? load(c + i * c_row + j * kVector) : Floats{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) row[j] = load(b + k * b_row + j * kVector);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Floats factor = Floats{} + a.data[i * a.row + k * a.column];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(sums[i][j], c + i * c_row + j * kVector);
  }
}

template <int Vectors>
inline void multiply_columns(Strided a, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t rows,
                             int64_t depth, bool adds) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return Strided{a.data + row * a.row, a.row, a.column}; };
  for (; i + kTileRows <= rows; i += kTileRows) {
    multiply_tile<kTileRows, Vectors>(at(i), b, b_row, c + i * c_row, c_row, depth, adds);
  }
  for (; i + 2 <= rows; i += 2) multiply_tile<2, Vectors>(at(i), b, b_row, c + i * c_row, c_row, depth, adds);
  if (i < rows) multiply_tile<1, Vectors>(at(i), b, b_row, c + i * c_row, c_row, depth, adds);
}

// c (rows, columns) = a (rows, depth) b (depth, columns), or += with `adds`. columns is a multiple of kVector; rows of
// b are b_row apart and those of c c_row.
inline void multiply(Strided a, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t rows, int64_t columns,
                     int64_t depth, bool adds) {
  int64_t j = 0;
  for (; j + kTileVectors * kVector <= columns; j += kTileVectors * kVector) {
    multiply_columns<kTileVectors>(a, b + j, b_row, c + j, c_row, rows, depth, adds);
  }
  for (; j < columns; j += kVector) multiply_columns<1>(a, b + j, b_row, c + j, c_row, rows, depth, adds);
}

}  // namespace pangu
