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
inline constexpr int64_t kGroups = 4;                             // of kVectors columns, in a panel
inline constexpr int64_t kColumns = kGroups * kVectors * kLanes;  // outputs that a thread computes at once: a panel
inline constexpr int64_t kDepth = 64, kPackedDepth = 256;         // inputs at once, for few rows and for many
inline constexpr int64_t kFewRows = 2 * kRowsAtOnce;              // so few that reading the weights takes the time

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

// Memory of one thread for copies.
class Workspace {
 public:
  Floats *of(int64_t vectors) {
    if (static_cast<int64_t>(data_.size()) < vectors) data_.resize(vectors);
    return data_.data();
  }

 private:
  std::vector<Floats> data_;
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

// Asks for nothing, where the weights are in a cache.
struct Here {
  template <int kWidth>
  void ask(const float *, int64_t) {}
};

// y (kRows, kWidth vectors) += x (kRows, inputs) times weight (inputs, kWidth vectors). It is not inlined, because GCC
// runs out of registers for addresses if it shares them with its surroundings; multiply_lanes neither.
template <int kRows, int kWidth, class Asking>
[[gnu::noinline]] void add_block(Rows<const float> x, const float *weight, int64_t stride, int64_t inputs,
                                 Rows<float> y, Asking ahead) {
  Floats sums[kRows][kWidth];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWidth; ++j) sums[i][j] = load<Floats>(y[i] + j * kLanes);
  }
  for (int64_t k = 0; k < inputs; ++k, weight += stride) {
    ahead.template ask<kWidth>(weight, kLanes);
    Floats w[kWidth];
    for (int j = 0; j < kWidth; ++j) w[j] = load<Floats>(weight + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Floats number = in_register(all(x[i][k]));
      for (int j = 0; j < kWidth; ++j) sums[i][j] += number * w[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWidth; ++j) store(sums[i][j], y[i] + j * kLanes);
  }
}

// Calls body(first column, number of vectors) for each kVectors vectors, or fewer, of the columns [begin, end).
template <class Body>
inline void each_group(int64_t begin, int64_t end, const Body &body) {
  for (int64_t column = begin; column < end; column += kVectors * kLanes) {
    with_constant<kVectors>((end - column) / kLanes, [&](auto vectors) { body(column, vectors); });
  }
}

// Copies the columns [begin, end) of a weight (depth, stride) group by group, so that each group is read as one stream.
inline void pack(const float *weight, int64_t stride, int64_t depth, int64_t begin, int64_t end, Floats *panel) {
  for (int64_t k = 0; k < depth; ++k) {
    each_group(begin, end, [&](int64_t column, auto vectors) {
      Floats *to = panel + (column - begin) / kLanes * depth + k * vectors;
      for (int j = 0; j < vectors; ++j) to[j] = load<Floats>(weight + k * stride + column + j * kLanes);
    });
  }
}

// y (rows, outputs) += x (rows, inputs) times the matrix + bias, for the outputs [begin, end) only, a panel of them.
inline void add_product(const Weights &m, int64_t rows, Rows<const float> x, Rows<float> y, int64_t begin, int64_t end,
                        Workspace &workspace) {
  const int64_t blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce, whole = begin + (end - begin) / kLanes * kLanes;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = begin; column < end; ++column) y[row][column] += m.bias[column];
  }
  const int64_t most = rows > kFewRows ? kPackedDepth : kDepth;
  Floats *panel = rows > kFewRows ? workspace.of(most * (whole - begin) / kLanes) : nullptr;
  for (int64_t first = 0; first < m.inputs; first += most) {
    const int64_t depth = std::min(most, m.inputs - first);
    const int64_t distance = first + depth < m.inputs ? depth * m.outputs : 0;
    const float *weight = m.weight + first * m.outputs;
    if (rows > kFewRows) pack(weight, m.outputs, depth, begin, whole, panel);
    each_group(begin, whole, [&](int64_t column, auto vectors) {
      for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        with_constant<kRowsAtOnce>(rows - row, [&](auto count) {
          const Rows<const float> from{x[row] + first, x.stride};
          const Rows<float> to{y[row] + column, y.stride};
          if (rows > kFewRows) {
            const auto *group = reinterpret_cast<const float *>(panel + (column - begin) / kLanes * depth);
            add_block<count(), vectors()>(from, group, vectors * kLanes, depth, to, Here{});
          } else {
            add_block<count(), vectors()>(from, weight + column, m.outputs, depth, to,
                                          Ahead{distance, blocks, row / kRowsAtOnce});
          }
        });
      }
    });
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = whole; column < end; ++column) {
        for (int64_t k = 0; k < depth; ++k) y[row][column] += x[row][first + k] * weight[k * m.outputs + column];
      }
    }
  }
}

// The products of numbers in the same lane, before their sum: x (vectors, kRows) and weight (kWidth, inputs) -> lanes
// (kWidth, kRows). Inputs after the last whole vector are left out.
template <int kRows, int kWidth>
[[gnu::noinline]] void multiply_lanes(const Floats *x, const float *weight, int64_t inputs, Ahead ahead,
                                      Floats *lanes) {
  Floats sums[kRows][kWidth] = {};
  for (int64_t left = inputs / kLanes; left; --left, weight += kLanes, x += kRows) {
    ahead.ask<kWidth>(weight, inputs);
    Floats w[kWidth];
    for (int j = 0; j < kWidth; ++j) w[j] = load<Floats>(weight + j * inputs);
    for (int i = 0; i < kRows; ++i) {
      const Floats numbers = in_register(x[i]);
      for (int j = 0; j < kWidth; ++j) sums[i][j] += numbers * w[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWidth; ++j) lanes[j * kRows + i] = sums[i][j];
  }
}

// sums (kRows) += the products of the inputs [first, inputs)
template <int kRows>
[[gnu::noinline]] void add_last_inputs(Rows<const float> x, const float *weight, int64_t first, int64_t inputs,
                                       float *sums) {
  for (int i = 0; i < kRows; ++i) {
    for (int64_t k = first; k < inputs; ++k) sums[i] += x[i][k] * weight[k];
  }
}

// Calls store(row, output, product) for each row of x (rows, inputs) and each of the outputs [begin, end). A block of
// rows is copied, so that it is read as one stream. Each weight is used for all rows at once if they are few. Otherwise
// a block of rows stays in the first-level cache, and the weights of these outputs in the second.
template <class Store>
inline void multiply_transposed(const Weights &m, int64_t rows, Rows<const float> x, int64_t begin, int64_t end,
                                Workspace &workspace, const Store &store) {
  const int64_t height = rows > kFewRows ? kRowsAtOnce : rows, vectors = m.inputs / kLanes, whole = vectors * kLanes;
  const int64_t blocks = (height + kRowsAtOnce - 1) / kRowsAtOnce;
  Floats *packed = workspace.of(vectors * height);
  const auto each_block = [&](int64_t top, const auto &body) {
    for (int64_t row = top; row < std::min(top + height, rows); row += kRowsAtOnce) {
      with_constant<kRowsAtOnce>(rows - row, [&](auto count) { body(row, packed + (row - top) * vectors, count); });
    }
  };
  for (int64_t top = 0; top < rows; top += height) {
    each_block(top, [&](int64_t row, Floats *to, auto count) {
      for (int64_t k = 0; k < vectors; ++k) {
        for (int i = 0; i < count; ++i) to[k * count + i] = load<Floats>(x[row + i] + k * kLanes);
      }
    });
    for (int64_t output = begin; output < end; output += kVectors) {
      const float *weight = m.weight + output * m.inputs;
      const int64_t distance = output + 2 * kVectors <= m.outputs ? kVectors * m.inputs : 0;
      each_block(top, [&](int64_t row, const Floats *from, auto count) {
        with_constant<kVectors>(end - output, [&](auto width) {
          Floats lanes[width() * count()];
          multiply_lanes<count(), width()>(from, weight, m.inputs, Ahead{distance, blocks, (row - top) / kRowsAtOnce},
                                           lanes);
          for (int j = 0; j < width; ++j) {
            float sums[kLanes];
            pangu::store(sums_of<count()>(lanes + j * count), sums);
            if (whole < m.inputs) {
              add_last_inputs<count()>({x[row], x.stride}, weight + j * m.inputs, whole, m.inputs, sums);
            }
            const float bias = m.bias ? m.bias[output + j] : 0.0f;
            for (int i = 0; i < count; ++i) store(row + i, output + j, sums[i] + bias);
          }
        });
      });
    }
  }
}

}  // namespace pangu
