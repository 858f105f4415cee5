// Products of inputs with matrices. The matrices have 4 or 8 bits a weight, in the layout of their file. Inputs are
// rounded to 8 bits.
//
// The lanes of a vector are tokens: hidden states lie in tiles of kLanes tokens, (features, kLanes) each. With few
// tokens, reading the weights takes most of the time; the lanes are then weights of a row.

#pragma once

#include "vectors.h"

namespace pangu {

inline constexpr int64_t kVector = sizeof(Ints);  // bytes
inline constexpr int64_t kFew = 4;                // up to this number of tokens, the lanes are weights of 8 bits
inline constexpr int64_t kPanel = 80;             // rows of a matrix that a thread multiplies at once
inline constexpr int64_t kChunk = 512;            // columns at once; they stay in the first-level cache
inline constexpr int64_t kMostBlock = 256;        // largest number of weights that share a scale

// Rows that are multiplied with two tiles at once, in registers; and the like of kFew for weights of 4 bits.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
inline constexpr int64_t kTileRows = 5, kFewPacked = kFew;
#else
inline constexpr int64_t kTileRows = 3, kFewPacked = 2;
#endif

// A weight is scale * (code - middle code). Each block of a row has its scale.
struct Matrix {
  int64_t rows, columns, bits;
  const uint8_t *codes;
  const float *scales, *bias;  // bias may be null
};

inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// In each lane: sums + the products of four unsigned codes of kBits and four signed 8-bit numbers, all exact.
template <int kBits>
inline Ints dot(Ints sums, Ints codes, Ints x) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)x);
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)codes, (__m256i)x);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (kBits == 4) {  // a pair of products fits 16 bits
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
    return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  } else {
    const __m256i odd = _mm256_srai_epi16((__m256i)x, 8), even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
    const __m256i low = _mm256_and_si256((__m256i)codes, _mm256_set1_epi16(255));
    return sums + (Ints)_mm256_madd_epi16(low, even) +
           (Ints)_mm256_madd_epi16(_mm256_srli_epi16((__m256i)codes, 8), odd);
  }
#else  // not used: ONNX Runtime computes the network
  for (int64_t i = 0; i < kVector; ++i) {
    sums[i / 4] += reinterpret_cast<const uint8_t *>(&codes)[i] * reinterpret_cast<const int8_t *>(&x)[i];
  }
  return sums;
#endif
}

// The input of a product, rounded to 8 bits. Each block of a token has a scale. Offsets are the products of the input
// with the middle code, negated.
//
// A tile has codes (columns / 4), offsets (blocks) and scales (blocks). With few tokens, `codes` holds all of them, in
// groups. A group belongs to the vectors of one block of a row, or to one vector that covers several blocks. It has the
// codes for each part of a byte (low half, then high half).
class Input {
 public:
  const int64_t tokens, tiles, parts, block_size, blocks;  // parts: codes of the matrix in one byte
  const int64_t block_bytes, vectors, groups;              // bytes of a block of a row; vectors of a group
  const bool few;

  Input(int64_t tokens, int64_t columns, int64_t block_size, int64_t bits)
      : tokens(tokens), tiles((tokens + kLanes - 1) / kLanes), parts(8 / bits), block_size(block_size),
        blocks((columns + block_size - 1) / block_size), block_bytes(block_size / parts),
        vectors(std::max<int64_t>(1, block_bytes / kVector)),
        groups((blocks * block_bytes + vectors * kVector - 1) / (vectors * kVector)),
        few(tokens <= (bits == 4 ? kFewPacked : kFew)),
        stride_(few ? groups * vectors * parts : blocks * block_size / 4), codes_(stride_ * (few ? kFew : tiles)),
        offsets_(tiles * blocks), scales_(offsets_.size()) {}

  const Ints *codes(int64_t tile_or_token) const { return codes_.data() + tile_or_token * stride_; }
  const Ints *offsets(int64_t tile) const { return offsets_.data() + tile * blocks; }
  const Floats *scales(int64_t tile) const { return scales_.data() + tile * blocks; }

  // Rounds and stores a block of a tile, (block_size) vectors.
  void put(int64_t tile, int64_t block, const Floats *values) {
    Floats largest{};
    for (int64_t i = 0; i < block_size; ++i) {
      const Floats size = values[i] < 0 ? -values[i] : values[i];
      largest = size > largest ? size : largest;
    }
    const Floats inverse = largest > 0 ? 127 / largest : Floats{};
    Ints codes[kMostBlock], total{};
    for (int64_t i = 0; i < block_size; ++i) {
      codes[i] = (Ints)(values[i] * inverse + kRounder) - 0x4b400000;  // the low bits hold the integer
      total += codes[i];
    }
    offsets_[tile * blocks + block] = total * (parts == 2 ? -8 : -128);
    scales_[tile * blocks + block] = largest / 127;
    if (few) {
      for (int64_t token = 0; token < tokens; ++token) put_token(token, block, codes);
    } else {
      put_tile(tile, block, codes);
    }
  }

 private:
  void put_tile(int64_t tile, int64_t block, const Ints *codes) {
    Ints *to = codes_.data() + tile * stride_ + block * block_size / 4;
    for (int64_t i = 0; i < block_size; i += 4) {
      *to++ = (codes[i] & 255) | (codes[i + 1] & 255) << 8 | (codes[i + 2] & 255) << 16 | codes[i + 3] << 24;
    }
  }

  // Writes lane by lane, because another thread may write the other lanes of a vector.
  void put_token(int64_t token, int64_t block, const Ints *codes) {
    const int64_t group_lanes = vectors * kLanes, count = block_bytes / 4, first = block * count % group_lanes;
    Ints *group = codes_.data() + token * stride_ + block * count / group_lanes * vectors * parts;
    int32_t *lanes = reinterpret_cast<int32_t *>(group);
    for (int64_t lane = first; lane < first + count; ++lane) {
      for (int64_t part = 0; part < parts; ++part) {
        uint32_t four = 0;
        for (int64_t i = 0; i < 4; ++i) {
          four |= static_cast<uint32_t>(codes[((lane - first) * 4 + i) * parts + part][token] & 255) << 8 * i;
        }
        lanes[(lane / kLanes * parts + part) * kLanes + lane % kLanes] = static_cast<int32_t>(four);
      }
    }
  }

  const int64_t stride_;
  std::vector<Ints> codes_, offsets_;
  std::vector<Floats> scales_;
};

// Multiplies matrices and inputs, panel by panel. It holds the memory that a thread needs for that.
class Multiplier {
 public:
  explicit Multiplier(int64_t most_tiles) : products_(most_tiles * kPanel), codes_(kPanel * kChunk) {}

  static int64_t panels(const Matrix &matrix) { return (matrix.rows + kPanel - 1) / kPanel; }

  // Calls store(tile, begin, end, products) for each tile of a panel. The products are rows [begin, end) of matrix
  // times input, plus bias.
  template <class Store>
  void multiply(const Matrix &matrix, const Input &input, int64_t panel, const Store &store) {
    const int64_t begin = panel * kPanel, end = std::min(begin + kPanel, matrix.rows);
    matrix.bits == 4 ? multiply<4>(matrix, input, begin, end) : multiply<8>(matrix, input, begin, end);
    for (int64_t tile = 0; tile < input.tiles; ++tile) {
      Floats *products = products_.data() + tile * kPanel;
      for (int64_t row = begin; matrix.bias && row < end; ++row) products[row - begin] += matrix.bias[row];
      store(tile, begin, end, products);
    }
  }

 private:
  template <int kBits>
  void multiply(const Matrix &matrix, const Input &input, int64_t begin, int64_t end) {
    if (!input.few) return multiply_tiles<kBits>(matrix, input, begin, end);
    with_constant<kFew>(input.tokens, [&](auto tokens) {
      input.block_bytes < kVector ? multiply_rows<kBits, tokens(), false>(matrix, input, begin, end)
                                  : multiply_rows<kBits, tokens(), true>(matrix, input, begin, end);
    });
  }

  // Multiplies kLanes rows at once. Their sums have the same order as in multiply_tile.
  template <int kBits, int kTokens, bool kIsOneBlock>
  void multiply_rows(const Matrix &matrix, const Input &input, int64_t begin, int64_t end) {
    constexpr int kParts = 8 / kBits;
    const int64_t vectors = input.vectors, bytes = vectors * kVector, row_bytes = input.blocks * input.block_bytes;
    const int64_t blocks = kIsOneBlock ? 1 : bytes / input.block_bytes;  // of a group
    for (int64_t row = begin; row < end; row += kLanes) {
      const uint8_t *codes[kLanes];
      const float *row_scales[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t here = std::min(row + i, end - 1);  // past the end, the last row is repeated
        codes[i] = matrix.codes + here * row_bytes;
        row_scales[i] = matrix.scales + here * input.blocks;
      }
      Floats sums[kTokens] = {}, scales[kLanes];  // scales of the rows, for kLanes blocks
      for (int64_t group = 0; group < input.groups; ++group) {
        const uint8_t *next = codes[0] + kLanes * (row_bytes + group * bytes);  // in the order of the file
        for (int64_t byte = 0; byte < kLanes * bytes; byte += 64) __builtin_prefetch(next + byte, 0, 2);
        const int64_t first = group * blocks, count = std::min(blocks, input.blocks - first);
        if (first % kLanes == 0) {
          Ints some[kLanes];
          for (int64_t i = 0; i < kLanes; ++i) some[i] = load<Ints>(row_scales[i] + first);
          add_lanes<kLanes>(some, kLanes);
          std::memcpy(scales, some, sizeof scales);
        }
        for (int token = 0; token < kTokens; ++token) {
          const Ints *x = input.codes(token) + group * vectors * kParts;
          Ints totals[kLanes] = {};
          for (int64_t v = 0; v < vectors; ++v) {
            for (int i = 0; i < kLanes; ++i) {
              const Ints packed = load<Ints>(codes[i] + group * bytes + v * kVector);
              if constexpr (kBits == 4) {
                const Ints low = packed & 0x0f0f0f0f, high = packed >> 4 & 0x0f0f0f0f;
                totals[i] = dot<4>(dot<4>(totals[i], low, x[2 * v]), high, x[2 * v + 1]);
              } else {
                totals[i] = dot<8>(totals[i], packed, x[v]);
              }
            }
          }
          add_lanes<kLanes>(totals, blocks);
          for (int64_t block = 0; block < count; ++block) {
            const Ints products = totals[block] + input.offsets(0)[first + block][token];
            sums[token] +=
                to_floats(products) * (input.scales(0)[first + block][token] * scales[(first + block) % kLanes]);
          }
        }
      }
      for (int64_t i = row; i < std::min(row + kLanes, end); ++i) {
        products_[i - begin] = Floats{};
        for (int token = 0; token < kTokens; ++token) products_[i - begin][token] = sums[token][i - row];
      }
    }
  }

  // The lanes of each vector belong to `blocks` blocks in turn. Adds up the lanes of a block: afterwards lane i of
  // vector b is the sum of block b of vector i.
  template <int kCount>
  [[gnu::always_inline]] static void add_lanes(Ints *vectors, int64_t blocks) {
    if constexpr (kCount > 1) {
      Ints even, odd, odds[kCount / 2];
      for (int64_t i = 0; i < kLanes; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
      for (int i = 0; i < kCount / 2; ++i) {
        odds[i] = __builtin_shuffle(vectors[2 * i], vectors[2 * i + 1], odd);
        vectors[i] = __builtin_shuffle(vectors[2 * i], vectors[2 * i + 1], even);
      }
      if (kCount > blocks) {
        for (int i = 0; i < kCount / 2; ++i) vectors[i] += odds[i];
        return add_lanes<kCount / 2>(vectors, blocks);
      }
      add_lanes<kCount / 2>(vectors, blocks / 2);
      add_lanes<kCount / 2>(odds, blocks / 2);
      for (int i = kCount / 2 - 1; i >= 0; --i) vectors[2 * i + 1] = odds[i], vectors[2 * i] = vectors[i];
    }
  }

  template <int kBits>
  void multiply_tiles(const Matrix &matrix, const Input &input, int64_t begin, int64_t end) {
    const int64_t columns = input.blocks * input.block_size;
    std::fill_n(products_.data(), input.tiles * kPanel, Floats{});
    for (int64_t first = 0; first < columns; first += kChunk) {
      const int64_t count = std::min(kChunk, columns - first), stride = kBits == 8 ? columns : kChunk;
      const uint8_t *codes = matrix.codes + begin * columns + first;
      if constexpr (kBits == 4) {
        for (int64_t row = begin; row < end; ++row) {
          unpack(matrix.codes + (row * columns + first) / 2, count / 2, codes_.data() + (row - begin) * kChunk);
        }
        codes = codes_.data();
      }
      for (int64_t tile = 0; tile < input.tiles; tile += 2) {
        const bool two = input.tiles - tile > 1;
        for (int64_t row = begin; row < end;) {
          const bool whole = row + kTileRows <= end;
          const int64_t rows = whole ? kTileRows : 1;
          if (tile == 0)
            prefetch<kBits>(matrix.codes + (row + kPanel) * columns * kBits / 8, rows, columns, first, count);
          const auto multiply_some = whole
                                         ? two ? multiply_tile<kBits, kTileRows, 2> : multiply_tile<kBits, kTileRows, 1>
                                     : two ? multiply_tile<kBits, 1, 2>
                                           : multiply_tile<kBits, 1, 1>;
          multiply_some(codes + (row - begin) * stride, stride, matrix.scales + row * input.blocks, input, tile, first,
                        count, products_.data() + tile * kPanel + row - begin);
          row += rows;
        }
      }
    }
  }

  // Asks for the codes that the next panel takes for the same columns.
  template <int kBits>
  static void prefetch(const uint8_t *codes, int64_t rows, int64_t columns, int64_t first, int64_t count) {
    for (int64_t row = 0; row < rows; ++row, codes += columns * kBits / 8) {
      for (int64_t byte = first * kBits / 8; byte < (first + count) * kBits / 8; byte += 64) {
        __builtin_prefetch(codes + byte, 0, 2);
      }
    }
  }

  static void unpack(const uint8_t *packed, int64_t count, uint8_t *codes) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      codes[2 * i] = packed[i] & 15;
      codes[2 * i + 1] = packed[i] >> 4;
    }
  }

  // to (tiles, kPanel) += kRows rows of a matrix times kTiles tiles, for `count` columns from `first` on.
  template <int kBits, int kRows, int kTiles>
  static void multiply_tile(const uint8_t *codes, int64_t stride, const float *scales, const Input &input, int64_t tile,
                            int64_t first, int64_t count, Floats *to) {
    const int64_t size = input.block_size, fours = size / 4, first_block = first / size, blocks = count / size;
    Floats sums[kRows][kTiles];
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kTiles; ++j) sums[i][j] = to[j * kPanel + i];
    }
    const Ints *x[kTiles], *offsets[kTiles];
    const Floats *x_scales[kTiles];
    for (int j = 0; j < kTiles; ++j) {
      x[j] = input.codes(tile + j) + first_block * fours;
      offsets[j] = input.offsets(tile + j) + first_block;
      x_scales[j] = input.scales(tile + j) + first_block;
    }
    for (int64_t block = 0; block < blocks; ++block) {
      Ints products[kRows][kTiles];
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kTiles; ++j) products[i][j] = offsets[j][block];
      }
      for (int64_t k = 0; k < fours; ++k, codes += 4) {
        for (int i = 0; i < kRows; ++i) {
          const Ints four = Ints{} + load<int32_t>(codes + i * stride);
          for (int j = 0; j < kTiles; ++j) products[i][j] = dot<kBits>(products[i][j], four, x[j][k]);
        }
      }
      for (int j = 0; j < kTiles; ++j) {
        x[j] += fours;
        for (int i = 0; i < kRows; ++i) {
          const float scale = scales[i * input.blocks + first_block + block];
          sums[i][j] += to_floats(products[i][j]) * (x_scales[j][block] * scale);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kTiles; ++j) to[j * kPanel + i] = sums[i][j];
    }
  }

  std::vector<Floats> products_;  // (tiles, kPanel)
  std::vector<uint8_t> codes_;    // unpacked: (kPanel, kChunk)
};

}  // namespace pangu
