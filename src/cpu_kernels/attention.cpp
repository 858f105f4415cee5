// Attention of a training step, a prompt or a scored text: forward and backward, without an array of all scores. Scores
// exist for one block of queries and keys at a time. The forward pass keeps a running maximum and sum of each row
// (Milakov and Gimelshein, arXiv 1805.02867), and the logarithm of the sum is all that the backward pass needs to
// compute the weights again (Dao et al., arXiv 2205.14135). Blocks that no query may attend to are left out.

#include <limits>

#include "small_products.h"

namespace pangu {
namespace {

constexpr int64_t kQueries = 48, kKeys = 128;  // in a block; queries are a multiple of kTileHeight
constexpr int32_t kShared = -1;                // number of a beginning that all documents of a row attend to
constexpr float kNever = -std::numeric_limits<float>::infinity();

using Vector = std::vector<float>;

// The part of the mask that belongs to one row of tokens: a token attends to itself, to the tokens before it in its
// document, and to the shared beginning.
class Documents {
 public:
  Documents(const int32_t *numbers, int64_t length) : begins_(length) {
    for (int64_t i = 1; i < length; ++i) begins_[i] = numbers[i] == numbers[i - 1] ? begins_[i - 1] : i;
    while (shared_ < length && numbers[shared_] == kShared) ++shared_;
  }

  // Whether no query of [first, last) attends to a key of [begin, end), where begin <= first.
  bool hides(int64_t first, int64_t begin, int64_t end) const { return begin >= shared_ && end <= begins_[first]; }

  // Sets the scores of a query that do not count to minus infinity, for keys [begin, end).
  void hide(int64_t query, int64_t begin, int64_t end, float *scores) const {
    const int64_t from = std::max(shared_, begin), to = std::min(begins_[query], end);
    if (from < to) std::fill(scores + (from - begin), scores + (to - begin), kNever);
    const int64_t later = std::max(query + 1, begin);
    if (later < end) std::fill(scores + (later - begin), scores + (end - begin), kNever);
  }

 private:
  std::vector<int64_t> begins_;  // the first token of each token's document
  int64_t shared_ = 0;
};

// Which weights of a head are dropped: src/nn/dropout.py, HashMask, for weights (A, S, S) of a row.
class Dropped {
 public:
  Dropped(int32_t key, const int32_t *settings, float scale, int64_t heads, int64_t head, int64_t length)
      : threshold_(settings[2]), scale_(scale), length_(length), row_(mixed(key + static_cast<uint32_t>(settings[0]))),
        first_((settings[1] * heads + head) * length * length) {}

  bool any() const { return threshold_ > 0; }

  // Multiplies the weights of one query, for keys [begin, begin + count), by 0 or by the scale.
  void apply(int64_t query, int64_t begin, int64_t count, float *weights) const {
    const uint32_t element = static_cast<uint32_t>(first_ + query * length_ + begin);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t word = mixed(row_ + (element + static_cast<uint32_t>(i)) * 0x9E3779B1u);
      weights[i] *= static_cast<int32_t>(word & 0x7FFFFFFFu) >= threshold_ ? scale_ : 0.0f;
    }
  }

 private:
  // MurmurHash3's finaliser, with shifts that keep the sign, as those of MindSpore's int32.
  static uint32_t mixed(uint32_t word) {
    word = (word ^ shifted(word, 16)) * 0x85EBCA6Bu;
    word = (word ^ shifted(word, 13)) * 0xC2B2AE35u;
    return word ^ shifted(word, 16);
  }
  static uint32_t shifted(uint32_t word, int places) {
    return static_cast<uint32_t>(static_cast<int32_t>(word) >> places);
  }

  const int32_t threshold_;
  const float scale_;
  const int64_t length_;
  const uint32_t row_;
  const int64_t first_;
};

// Inputs that both passes have.
constexpr int kQ = 0, kK = 1, kV = 2, kDocuments = 3, kHeadSize = 4, kDropoutKeys = 5, kDropout = 6, kScale = 7;

// Sizes, and what a thread needs for one head at a time.
struct Shape {
  explicit Shape(const Arguments &a)
      : batch(a.dim(kDocuments, 0)), length(a.dim(kDocuments, 1)), width(a.dim(kQ, 1)), size(*a.ints(kHeadSize)),
        heads(width / size), padded(padded_to_vector(size)), factor(1.0f / std::sqrt(static_cast<float>(size))) {}

  int64_t offset(int64_t row, int64_t head) const { return row * length * width + head * size; }

  const int64_t batch, length, width, size, heads;
  const int64_t padded;  // size of a head, up to whole vectors
  const float factor;    // of the scores
};

// factor * rows (count, size) that are `stride` apart -> copy (count, padded)
void copy_rows(const float *rows, int64_t stride, int64_t count, int64_t size, int64_t padded, Vector &copy,
               float factor = 1.0f) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < size; ++j) copy[i * padded + j] = factor * rows[i * stride + j];
    std::fill_n(copy.data() + i * padded + size, padded - size, 0.0f);
  }
}

// rows (count, size) that are `stride` apart -> blocks of kKeys columns (size, kKeys)
void copy_blocks(const float *rows, int64_t stride, int64_t count, int64_t size, Vector &blocks) {
  for (int64_t first = 0; first < count; first += kLanes) {  // divides kKeys
    const float *row = rows + first * stride;
    float *column = blocks.data() + first / kKeys * kKeys * size + first % kKeys;
    int64_t j = 0;
    if (first + kLanes <= count) {
      for (; j + kLanes <= size; j += kLanes) transpose_tile(row + j, stride, column + j * kKeys, kKeys);
    }
    for (; j < size; ++j) {
      for (int64_t i = 0; i < std::min(kLanes, count - first); ++i) column[j * kKeys + i] = row[i * stride + j];
    }
  }
}

int64_t whole_blocks(int64_t count) { return (count + kKeys - 1) / kKeys * kKeys; }

// Scores of queries [first, last) and keys [begin, begin + width), as far as they count. The queries are scaled.
void compute_scores(const Shape &s, const Documents &documents, const float *queries, const float *key_block,
                    int64_t first, int64_t last, int64_t begin, int64_t width, float *scores) {
  multiply({queries + first * s.padded, s.padded, 1}, key_block, kKeys, scores, kKeys, last - first, width, s.size,
           false);
  for (int64_t query = first; query < last; ++query) {
    documents.hide(query, begin, begin + width, scores + (query - first) * kKeys);
  }
}

// Forward pass of one head.
class Head {
 public:
  explicit Head(const Shape &shape)
      : s_(shape), keys_(whole_blocks(s_.length) * s_.size), queries_(s_.length * s_.padded), values_(queries_.size()),
        sums_(kQueries * s_.padded), scores_(kQueries * kKeys) {}

  void run(const Arguments &a, int64_t row, int64_t head, const Documents &documents, const Dropped &dropped) {
    const int64_t offset = s_.offset(row, head);
    copy_blocks(a[kK] + offset, s_.width, s_.length, s_.size, keys_);
    copy_rows(a[kQ] + offset, s_.width, s_.length, s_.size, s_.padded, queries_, s_.factor);
    copy_rows(a[kV] + offset, s_.width, s_.length, s_.size, s_.padded, values_);
    float *mixed = a[kScale + 1] + offset, *logs = a[kScale + 2] + (row * s_.heads + head) * s_.length;
    for (int64_t first = 0; first < s_.length; first += kQueries) {
      const int64_t last = std::min(first + kQueries, s_.length);
      attend(first, last, documents, dropped);
      for (int64_t i = 0; i < last - first; ++i) {
        const float share = 1.0f / totals_[i];
        for (int64_t j = 0; j < s_.size; ++j) mixed[(first + i) * s_.width + j] = share * sums_[i * s_.padded + j];
        logs[first + i] = largest_[i] + std::log(totals_[i]);
      }
    }
  }

 private:
  void attend(int64_t first, int64_t last, const Documents &documents, const Dropped &dropped) {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    std::fill_n(totals_, kQueries, 0.0f);
    std::fill_n(largest_, kQueries, kNever);
    for (int64_t begin = 0; begin < last; begin += kKeys) {
      const int64_t end = std::min(begin + kKeys, last);
      if (documents.hides(first, begin, end)) continue;
      const int64_t width = padded_to_vector(end - begin);
      compute_scores(s_, documents, queries_.data(), keys_.data() + begin * s_.size, first, last, begin, width,
                     scores_.data());
      for (int64_t i = 0; i < last - first; ++i) weigh(i, width);
      if (dropped.any()) {
        for (int64_t i = 0; i < last - first; ++i) {
          dropped.apply(first + i, begin, end - begin, scores_.data() + i * kKeys);
        }
      }
      multiply({scores_.data(), kKeys, 1}, values_.data() + begin * s_.padded, s_.padded, sums_.data(), s_.padded,
               last - first, s_.padded, end - begin, true);
    }
  }

  // Turns the scores of a query into weights, relative to the largest score so far.
  void weigh(int64_t i, int64_t width) {
    float *scores = scores_.data() + i * kKeys;
    Floats highest = all(largest_[i]), total{};
    for (int64_t j = 0; j < width; j += kLanes) {
      const Floats x = load<Floats>(scores + j);
      highest = x > highest ? x : highest;
    }
    const float largest = largest_of(highest);
    if (largest == kNever) {  // no key of this block or of one before counts
      std::fill_n(scores, width, 0.0f);
      return;
    }
    for (int64_t j = 0; j < width; j += kLanes) {
      const Floats weight = exponential<Floats, Ints>(load<Floats>(scores + j) - largest);
      store(weight, scores + j);
      total += weight;
    }
    const float kept = exponential(largest_[i] - largest);
    totals_[i] = totals_[i] * kept + sum(total);
    largest_[i] = largest;
    if (kept == 1.0f) return;
    float *sums = sums_.data() + i * s_.padded;
    for (int64_t j = 0; j < s_.padded; j += kLanes) store(load<Floats>(sums + j) * kept, sums + j);
  }

  const Shape &s_;
  Vector keys_, queries_, values_, sums_, scores_;
  float totals_[kQueries], largest_[kQueries];
};

// Backward pass of one head. Inputs after those of the forward pass: its outputs, and the gradient of the first.
class HeadGradient {
 public:
  explicit HeadGradient(const Shape &shape)
      : s_(shape), key_blocks_(whole_blocks(s_.length) * s_.size), value_blocks_(key_blocks_.size()),
        queries_(s_.length * s_.padded), keys_(queries_.size()), douts_(queries_.size()), dq_(queries_.size()),
        dk_(kKeys * s_.padded), dv_(dk_.size()), weights_(kQueries * kKeys), dscores_(weights_.size()),
        dots_(s_.length) {}

  void run(const Arguments &a, int64_t row, int64_t head, const Documents &documents, const Dropped &dropped) {
    const int64_t offset = s_.offset(row, head);
    const float *dout = a[kScale + 3] + offset;
    logs_ = a[kScale + 2] + (row * s_.heads + head) * s_.length;
    copy_blocks(a[kK] + offset, s_.width, s_.length, s_.size, key_blocks_);
    copy_blocks(a[kV] + offset, s_.width, s_.length, s_.size, value_blocks_);
    copy_rows(a[kQ] + offset, s_.width, s_.length, s_.size, s_.padded, queries_, s_.factor);
    copy_rows(a[kK] + offset, s_.width, s_.length, s_.size, s_.padded, keys_);
    copy_rows(dout, s_.width, s_.length, s_.size, s_.padded, douts_);
    const float *mixed = a[kScale + 1] + offset;
    for (int64_t i = 0; i < s_.length; ++i) dots_[i] = dot(mixed + i * s_.width, dout + i * s_.width, s_.size);
    std::fill(dq_.begin(), dq_.end(), 0.0f);
    for (int64_t begin = 0; begin < s_.length; begin += kKeys) {
      const int64_t end = std::min(begin + kKeys, s_.length);
      std::fill(dk_.begin(), dk_.end(), 0.0f);
      std::fill(dv_.begin(), dv_.end(), 0.0f);
      for (int64_t first = begin / kQueries * kQueries; first < s_.length; first += kQueries) {
        const int64_t last = std::min(first + kQueries, s_.length), seen = std::min(end, last);
        if (seen > begin && !documents.hides(first, begin, seen)) add(first, last, begin, seen, documents, dropped);
      }
      write(dk_, 1.0f, end - begin, a[kScale + 5] + offset + begin * s_.width);
      write(dv_, 1.0f, end - begin, a[kScale + 6] + offset + begin * s_.width);
    }
    write(dq_, s_.factor, s_.length, a[kScale + 4] + offset);
  }

 private:
  // Adds what queries [first, last) and keys [begin, end) contribute.
  void add(int64_t first, int64_t last, int64_t begin, int64_t end, const Documents &documents,
           const Dropped &dropped) {
    const int64_t rows = last - first, count = end - begin, width = padded_to_vector(count);
    float *weights = weights_.data(), *dscores = dscores_.data();
    compute_scores(s_, documents, queries_.data(), key_blocks_.data() + begin * s_.size, first, last, begin, width,
                   weights);
    multiply({douts_.data() + first * s_.padded, s_.padded, 1}, value_blocks_.data() + begin * s_.size, kKeys, dscores,
             kKeys, rows, width, s_.size, false);
    for (int64_t i = 0; i < rows; ++i) {
      float *weight = weights + i * kKeys, *dscore = dscores + i * kKeys;
      if (dropped.any()) dropped.apply(first + i, begin, count, dscore);
      for (int64_t j = 0; j < width; j += kLanes) {
        const Floats x = exponential<Floats, Ints>(load<Floats>(weight + j) - logs_[first + i]);
        store(x, weight + j);
        store(x * (load<Floats>(dscore + j) - dots_[first + i]), dscore + j);
      }
      if (dropped.any()) dropped.apply(first + i, begin, count, weight);
    }
    multiply({weights, 1, kKeys}, douts_.data() + first * s_.padded, s_.padded, dv_.data(), s_.padded, count, s_.padded,
             rows, true);
    multiply({dscores, 1, kKeys}, queries_.data() + first * s_.padded, s_.padded, dk_.data(), s_.padded, count,
             s_.padded, rows, true);
    multiply({dscores, kKeys, 1}, keys_.data() + begin * s_.padded, s_.padded, dq_.data() + first * s_.padded,
             s_.padded, rows, s_.padded, count, true);
  }

  // factor * the sums (count, padded) -> rows (count, size) that are `width` apart
  void write(const Vector &sums, float factor, int64_t count, float *rows) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < s_.size; ++j) rows[i * s_.width + j] = factor * sums[i * s_.padded + j];
    }
  }

  const Shape &s_;
  const float *logs_ = nullptr;
  Vector key_blocks_, value_blocks_, queries_, keys_, douts_, dq_, dk_, dv_, weights_, dscores_;
  Vector dots_;  // of each row of the output and its gradient
};

template <class Pass>
void for_each_head(const Arguments &a) {
  const Shape shape(a);
  parallel(shape.batch * shape.heads, shape.length * shape.length * shape.size, [&](int64_t begin, int64_t end) {
    Pass pass(shape);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / shape.heads, head = i % shape.heads;
      const Documents documents(a.ints(kDocuments) + row * shape.length, shape.length);
      const Dropped dropped(a.ints(kDropout)[2] > 0 ? a.ints(kDropoutKeys)[row] : 0, a.ints(kDropout), a.scalar(kScale),
                            shape.heads, head, shape.length);
      pass.run(a, row, head, documents, dropped);
    }
  });
}

// q, k, v (B * S, H); numbers of documents (B, S); size of a head; keys of dropout (B); {site, part, threshold}; scale
// of what is kept -> weighted sums of values (B * S, H), logarithms of the softmax's denominators (B, A, S)
void attention(const Arguments &a) { for_each_head<Head>(a); }

// the same inputs, the two outputs, and the gradient of the first -> gradients of q, k and v
void attention_gradient(const Arguments &a) { for_each_head<HeadGradient>(a); }

}  // namespace
}  // namespace pangu

KERNEL(attention)
KERNEL(attention_gradient)
