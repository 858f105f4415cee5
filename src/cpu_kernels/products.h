// Products of rows of float32 numbers with matrices. A weight is read from memory once for all rows. The order of the
// sums of a row does not depend on the other rows, so a row gets the numbers that it gets alone.

#pragma once

#include "vectors.h"

namespace pangu {

#if defined(__AVX512F__)
inline constexpr int64_t kRowsAtOnce = 8, kVectors = 3;  // their sums stay in registers
#else
inline constexpr int64_t kRowsAtOnce = 4, kVectors = 2;
#endif
inline constexpr int64_t kColumns = 4 * kVectors * kLanes;  // outputs that a thread computes at once
inline constexpr int64_t kDepth = 64;                       // inputs at once

// A matrix (inputs, outputs), or (outputs, inputs) for multiply_transposed.
struct Weights {
  const float *weight, *bias;  // bias may be null for multiply_transposed
  int64_t inputs, outputs;
};

// Rows of numbers that begin `stride` numbers apart.
template <class Number>
struct Rows {
  Number *data;
  int64_t stride;
  Number *operator[](int64_t row) const { return data + row * stride; }
  operator Rows<const Number>() const { return {data, stride}; }
};

// Asks for the weights that lie `distance` after the present ones, at every turn of a block of rows. The blocks take
// turns, so that memory is read all the time. The weights go to the second-level cache: the first one is full.
struct Ahead {
  int64_t distance, blocks, left;

  template <int kWidth>
  void ask(const float *weight, int64_t step) {
    if (left--) return;
    left = blocks - 1;
    for (int j = 0; j < kWidth; ++j) __builtin_prefetch(weight + distance + j * step, 0, 2);
  }
};

// y (kRows, kWidth vectors) += x (kRows, inputs) times weight (inputs, kWidth vectors)
template <int kRows, int kWidth>
inline void add_block(Rows<const float> x, const float *weight, int64_t stride, int64_t inputs, Rows<float> y,
                      Ahead ahead) {
  Floats sums[kRows][kWidth];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWidth; ++j) sums[i][j] = load<Floats>(y[i] + j * kLanes);
  }
  for (int64_t k = 0; k < inputs; ++k, weight += stride) {
    ahead.ask<kWidth>(weight, kLanes);
    Floats w[kWidth];
    for (int j = 0; j < kWidth; ++j) w[j] = load<Floats>(weight + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Floats number = in_register(Floats{} + x[i][k]);
      for (int j = 0; j < kWidth; ++j) sums[i][j] += number * w[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWidth; ++j) store(sums[i][j], y[i] + j * kLanes);
  }
}

// y (rows, outputs) += x (rows, inputs) times the matrix + bias, for the outputs [begin, end) only.
inline void add_product(const Weights &m, int64_t rows, Rows<const float> x, Rows<float> y, int64_t begin,
                        int64_t end) {
  const int64_t blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce, whole = begin + (end - begin) / kLanes * kLanes;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = begin; column < end; ++column) y[row][column] += m.bias[column];
  }
  const int64_t most = blocks > 2 ? 4 * kDepth : kDepth;
  for (int64_t first = 0; first < m.inputs; first += most) {
    const int64_t depth = std::min(most, m.inputs - first);
    const int64_t distance = first + depth < m.inputs ? depth * m.outputs : 0;
    const float *weight = m.weight + first * m.outputs;
    for (int64_t column = begin; column < whole;) {
      const int64_t width = std::min<int64_t>(kVectors, (whole - column) / kLanes);
      for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        with_constant<kRowsAtOnce>(rows - row, [&](auto count) {
          with_constant<kVectors>(width, [&](auto vectors) {
            add_block<count(), vectors()>({x[row] + first, x.stride}, weight + column, m.outputs, depth,
                                          {y[row] + column, y.stride}, {distance, blocks, row / kRowsAtOnce});
          });
        });
      }
      column += width * kLanes;
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = whole; column < end; ++column) {
        for (int64_t k = 0; k < depth; ++k) y[row][column] += x[row][first + k] * weight[k * m.outputs + column];
      }
    }
  }
}

// Calls store(i, j, product) for the products of x (kRows, inputs) and weight (kWidth, inputs).
template <int kRows, int kWidth, class Store>
inline void multiply_block(Rows<const float> x, const float *weight, int64_t inputs, Ahead ahead, const Store &store) {
  Floats sums[kRows][kWidth] = {};
  const int64_t whole = inputs / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    ahead.ask<kWidth>(weight + k, inputs);
    Floats w[kWidth];
    for (int j = 0; j < kWidth; ++j) w[j] = load<Floats>(weight + j * inputs + k);
    for (int i = 0; i < kRows; ++i) {
      const Floats numbers = in_register(load<Floats>(x[i] + k));
      for (int j = 0; j < kWidth; ++j) sums[i][j] += numbers * w[j];
    }
  }
  Floats found[kRows][kWidth];  // in memory, so that the sums stay in registers until now
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) found[i][j] = sums[i][j];
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWidth; ++j) {
      float total = sum(found[i][j]);
      for (int64_t k = whole; k < inputs; ++k) total += x[i][k] * weight[j * inputs + k];
      store(i, j, total);
    }
  }
}

// Calls store(row, output, product) for each row of x (rows, inputs) and each of the outputs [begin, end).
template <class Store>
inline void multiply_transposed(const Weights &m, int64_t rows, Rows<const float> x, int64_t begin, int64_t end,
                                const Store &store) {
  const int64_t blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t output = begin; output < end; output += kVectors) {
    const int64_t distance = output + 2 * kVectors <= m.outputs ? kVectors * m.inputs : 0;
    for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
      with_constant<kRowsAtOnce>(rows - row, [&](auto count) {
        with_constant<kVectors>(end - output, [&](auto width) {
          multiply_block<count(), width()>({x[row], x.stride}, m.weight + output * m.inputs, m.inputs,
                                           {distance, blocks, row / kRowsAtOnce}, [&](int i, int j, float product) {
                                             store(row + i, output + j, product + (m.bias ? m.bias[output + j] : 0.0f));
                                           });
        });
      });
    }
  }
}

}  // namespace pangu
