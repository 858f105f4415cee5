// Products of rows of float32 numbers with matrices. A weight is read from memory once for all rows. The order of the
// sums of a row does not depend on the other rows, so a row gets the numbers that it gets alone.

#pragma once

#include "vectors.h"

namespace pangu {

// Sums that stay in registers: of so many rows and vectors of outputs, and of so many rows and outputs in lanes.
// So few rows that reading the weights takes most of the time, and that no copies of the weights are worth theirs.
#if defined(__AVX512F__)
inline constexpr int64_t kRowsAtOnce = 8, kVectors = 3, kLaneRows = 8, kLaneOutputs = 3, kFewRows = 16;
#else
inline constexpr int64_t kRowsAtOnce = 6, kVectors = 2, kLaneRows = 4, kLaneOutputs = 3, kFewRows = 36;
#endif
inline constexpr int64_t kChunk = kVectors * kLanes, kLaneChunk = kLaneOutputs * kLanes;  // outputs
inline constexpr int64_t kColumns = 4 * kLaneChunk;  // outputs that a thread computes at once
inline constexpr int64_t kDepth = 64;                // inputs at once, for few rows
inline constexpr int64_t kLoneRows = 2;              // so few that their sums stay in the first-level cache

// For many rows: rows and columns of x and of a weight that are in the second-level cache, and inputs of those in the
// first.
inline constexpr int64_t kPackedRows = 96, kPackedColumns = 96, kPackedDepth = 256, kLaneDepth = 1024;

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
  explicit Here(int64_t = 0, int64_t = 0, int64_t = 0) {}
  template <int kWidth>
  void ask(const float *, int64_t) {}
};

// y (kRows, kWidth vectors) += x (kRows, inputs) times weight (inputs, kWidth vectors). It is not inlined, because GCC
// runs out of registers for addresses if it shares them with its surroundings.
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
  for (int64_t column = begin; column < end; column += kChunk) {
    with_constant<kVectors>((end - column) / kLanes, [&](auto vectors) { body(column, vectors); });
  }
}

// Copies the columns [begin, end) of a weight (depth, stride) group by group, so that each group is read as one stream.
inline void pack(const float *weight, int64_t stride, int64_t depth, int64_t begin, int64_t end, float *panel) {
  for (int64_t k = 0; k < depth; ++k) {
    each_group(begin, end, [&](int64_t column, auto vectors) {
      float *to = panel + (column - begin) * depth + k * vectors * kLanes;
      for (int j = 0; j < vectors; ++j) store(load<Floats>(weight + k * stride + column + j * kLanes), to + j * kLanes);
    });
  }
}

// y (rows, outputs) += x (rows, inputs) times the whole vectors of columns [begin, end) of the matrix, for many rows.
// Some of the rows stay in the second-level cache while all the columns are computed.
inline void add_packed(const Weights &m, int64_t rows, Rows<const float> x, Rows<float> y, int64_t begin, int64_t end,
                       Workspace &workspace) {
  auto *panel = reinterpret_cast<float *>(workspace.of(kPackedDepth * (end - begin) / kLanes));
  for (int64_t first = 0; first < m.inputs; first += kPackedDepth) {
    const int64_t depth = std::min(kPackedDepth, m.inputs - first);
    pack(m.weight + first * m.outputs, m.outputs, depth, begin, end, panel);
    for (int64_t top = 0; top < rows; top += kPackedRows) {
      const int64_t bottom = std::min(top + kPackedRows, rows);
      each_group(begin, end, [&](int64_t column, auto vectors) {
        for (int64_t row = top; row < bottom; row += kRowsAtOnce) {
          with_constant<kRowsAtOnce>(bottom - row, [&](auto count) {
            add_block<count(), vectors()>({x[row] + first, x.stride}, panel + (column - begin) * depth,
                                          vectors * kLanes, depth, {y[row] + column, y.stride}, Here{});
          });
        }
      });
    }
  }
}

// The same for few rows. The blocks of rows take turns, so that a weight is read from memory once.
inline void add_streamed(const Weights &m, int64_t rows, Rows<const float> x, Rows<float> y, int64_t begin,
                         int64_t end) {
  const int64_t blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t first = 0; first < m.inputs; first += kDepth) {
    const int64_t depth = std::min(kDepth, m.inputs - first);
    const int64_t distance = first + depth < m.inputs ? depth * m.outputs : 0;
    each_group(begin, end, [&](int64_t column, auto vectors) {
      for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        with_constant<kRowsAtOnce>(rows - row, [&](auto count) {
          add_block<count(), vectors()>({x[row] + first, x.stride}, m.weight + first * m.outputs + column, m.outputs,
                                        depth, {y[row] + column, y.stride}, Ahead{distance, blocks, row / kRowsAtOnce});
        });
      }
    });
  }
}

// The same for a lone row or two, which read the weights in long runs. Each sum takes its inputs in the same order.
inline void add_in_runs(const Weights &m, int64_t rows, Rows<const float> x, Rows<float> y, int64_t begin,
                        int64_t end) {
  constexpr int64_t kInputs = 4;
  for (int64_t k = 0; k < m.inputs; k += kInputs) {
    const float *weight = m.weight + k * m.outputs;
    const int64_t distance = k + 2 * kInputs <= m.inputs ? kInputs * m.outputs : 0;
    with_constant<kInputs>(m.inputs - k, [&](auto inputs) {
      for (int64_t row = 0; row < rows; ++row) {
        Ahead ahead{distance, rows, row};
        Floats numbers[inputs];
        for (int i = 0; i < inputs; ++i) numbers[i] = all(x[row][k + i]);
        for (int64_t column = begin; column < end; column += kLanes) {
          Floats sum = load<Floats>(y[row] + column);
          for (int i = 0; i < inputs; ++i) sum += numbers[i] * load<Floats>(weight + i * m.outputs + column);
          store(sum, y[row] + column);
          ahead.template ask<inputs()>(weight + column, m.outputs);
        }
      }
    });
  }
}

// y (rows, outputs) += x (rows, inputs) times the matrix + bias, for the outputs [begin, end) only, a panel of them.
inline void add_product(const Weights &m, int64_t rows, Rows<const float> x, Rows<float> y, int64_t begin, int64_t end,
                        Workspace &workspace) {
  const int64_t whole = begin + (end - begin) / kLanes * kLanes;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = begin; column < end; ++column) y[row][column] += m.bias[column];
  }
  if (rows > kFewRows) {
    for (int64_t column = begin; column < whole; column += kPackedColumns) {
      add_packed(m, rows, x, y, column, std::min(column + kPackedColumns, whole), workspace);
    }
  } else if (rows <= kLoneRows) {
    add_in_runs(m, rows, x, y, begin, whole);
  } else {
    add_streamed(m, rows, x, y, begin, whole);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < m.inputs; ++k) {
      for (int64_t column = whole; column < end; ++column) {
        y[row][column] += x[row][k] * m.weight[k * m.outputs + column];
      }
    }
  }
}

// The products of numbers in the same lane, before their sum: lanes (kRows, kWidth) += x (kRows, inputs) times weight
// (kWidth, inputs), whose rows are `stride` apart. Rows of lanes are kLaneChunk apart. Inputs after the last whole
// vector are left out. It is not inlined, for the reason that add_block has.
template <int kRows, int kWidth, class Asking>
[[gnu::noinline]] void add_lanes(Rows<const float> x, const float *weight, int64_t stride, int64_t inputs, Asking ahead,
                                 Floats *lanes) {
  Floats sums[kRows][kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) sums[i][j] = lanes[i * kLaneChunk + j];
  }
  const int64_t whole = inputs / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    ahead.template ask<kWidth>(weight + k, stride);
    Floats w[kWidth];
    for (int j = 0; j < kWidth; ++j) w[j] = in_register(load<Floats>(weight + j * stride + k));
    for (int i = 0; i < kRows; ++i) {
      const Floats numbers = in_register(load<Floats>(x[i] + k));
      for (int j = 0; j < kWidth; ++j) sums[i][j] += numbers * w[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) lanes[i * kLaneChunk + j] = sums[i][j];
  }
}

// lanes (rows, kLaneChunk) += x (rows, depth) times the inputs [first, first + depth) of outputs [begin, end)
template <class Asking>
inline void add_chunk(const Weights &m, int64_t rows, Rows<const float> x, int64_t first, int64_t depth, int64_t begin,
                      int64_t end, Floats *lanes) {
  const int64_t blocks = (rows + kLaneRows - 1) / kLaneRows;
  for (int64_t output = begin; output < end; output += kLaneOutputs) {
    const int64_t distance = output + 2 * kLaneOutputs <= m.outputs ? kLaneOutputs * m.inputs : 0;
    for (int64_t row = 0; row < rows; row += kLaneRows) {
      with_constant<kLaneRows>(rows - row, [&](auto count) {
        with_constant<kLaneOutputs>(end - output, [&](auto width) {
          add_lanes<count(), width()>({x[row], x.stride}, m.weight + output * m.inputs + first, m.inputs, depth,
                                      Asking{distance, blocks, row / kLaneRows},
                                      lanes + row * kLaneChunk + output - begin);
        });
      });
    }
  }
}

// products (kLaneChunk) of a row, of which `count` count: the sums of their lanes, the last inputs, and the bias.
inline void finish_chunk(const Weights &m, const float *x, int64_t output, int64_t count, const Floats *lanes,
                         float *products) {
  for (int64_t i = 0; i < kLaneChunk; i += kLanes) store(sums_of<kLanes>(lanes + i), products + i);
  for (int64_t k = m.inputs / kLanes * kLanes; k < m.inputs; ++k) {
    for (int64_t i = 0; i < count; ++i) products[i] += x[k] * m.weight[(output + i) * m.inputs + k];
  }
  if (m.bias == nullptr) return;
  for (int64_t i = 0; i < count; ++i) products[i] += m.bias[output + i];
}

// Calls store(row, output, count, products) for each row of x (rows, inputs) and each chunk of the outputs [begin,
// end). Each weight is used for all rows at once if they are few. Otherwise a part of some rows stays in the
// first-level cache, and the weights of these outputs in the second.
template <class Store>
inline void multiply_transposed(const Weights &m, int64_t rows, Rows<const float> x, int64_t begin, int64_t end,
                                Workspace &workspace, const Store &store) {
  const bool few = rows <= kFewRows;
  const int64_t most = few ? rows : kLaneRows, depth = few ? m.inputs : kLaneDepth;
  Floats *lanes = workspace.of(most * kLaneChunk);
  for (int64_t top = 0; top < rows; top += most) {
    const int64_t height = std::min(most, rows - top);
    for (int64_t chunk = begin; chunk < end; chunk += kLaneChunk) {
      const int64_t last = std::min(chunk + kLaneChunk, end);
      std::fill_n(lanes, height * kLaneChunk, Floats{});
      for (int64_t first = 0; first < m.inputs; first += depth) {
        const auto add = few || top == 0 ? add_chunk<Ahead> : add_chunk<Here>;
        add(m, height, {x[top] + first, x.stride}, first, std::min(depth, m.inputs - first), chunk, last, lanes);
      }
      for (int64_t row = 0; row < height; ++row) {
        float products[kLaneChunk];
        finish_chunk(m, x[top + row], chunk, last - chunk, lanes + row * kLaneChunk, products);
        store(top + row, chunk, last - chunk, products);
      }
    }
  }
}

}  // namespace pangu
