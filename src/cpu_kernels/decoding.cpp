// Decodes one token in one call. On a CPU this takes as long as reading the weights once. A graph of hundreds of
// operators would add its own time.

#include "common.h"

namespace pangu {
namespace {

// y (B, O) += x (B, I) times weight (I, O), for inputs [first, last) and columns [begin, end) only. Each weight is read
// once, four rows of weights at a time.
void add_product(int64_t rows, const float *x, int64_t inputs, int64_t first, int64_t last, const float *weight,
                 int64_t outputs, float *y, int64_t begin, int64_t end) {
  for (int64_t input = first; input < last; input += 4) {
    const float *w[4];
    for (int64_t i = 0; i < 4; ++i) w[i] = weight + std::min(input + i, last - 1) * outputs;
    for (int64_t row = 0; row < rows; ++row) {
      float part[4] = {};
      std::copy(x + row * inputs + input, x + row * inputs + std::min(input + 4, last), part);
      float *sums = y + row * outputs;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        sums[i] += part[0] * w[0][i] + part[1] * w[1][i] + part[2] * w[2][i] + part[3] * w[3][i];
      }
    }
  }
}

// The parameters of a layer, in the order in which token_decoder.py passes them.
struct Layer {
  const float *gamma1, *beta1, *query, *query_bias, *key, *key_bias, *value, *value_bias, *projection, *projection_bias;
  const float *gamma2, *beta2, *mapping, *mapping_bias, *output, *output_bias;
  float *keys, *values;  // the caches (B, A, C, d)
};
constexpr int kIds = 0, kPositions = 1, kEpsilon = 2, kWords = 3, kPlaces = 4, kQueries = 5, kFinal = 6,
              kFirstLayer = 8;
constexpr int kLayerInputs = 18;

// Passes one token of each row through all layers. A member of the team computes whole heads and a share of the hidden
// units, and their part of the products that follow. All members sum these parts, so they wait for each other twice in
// a layer. The last bits of the sums depend on the number of threads.
class Decoder {
 public:
  explicit Decoder(const Arguments &a)
      : a_(a), rows_(a.dim(kIds, 0)), width_(a.dim(kWords, 1)), layers_((a.count - kFirstLayer - 1) / kLayerInputs),
        heads_(a.dim(kFirstLayer + 16, 1)), capacity_(a.dim(kFirstLayer + 16, 2)), head_size_(width_ / heads_),
        inner_(a.dim(kFirstLayer + 12, 1)), classes_(a.dim(kWords, 0)),
        team_(std::max(1u, std::thread::hardware_concurrency())), attended_(team_.size()), fed_(team_.size()) {}

  void run() {
    team_.run([this](int64_t member) { work(member); });
  }

 private:
  using Vector = std::vector<float>;

  // Every member has its own copy of the residual stream.
  void work(int64_t member) {
    Vector x(rows_ * width_), top_query(x.size()), normed(x.size());
    embed(x, top_query);
    for (int64_t index = 0; index < layers_; ++index) {
      Layer layer;
      std::memcpy(&layer, a_.data + kFirstLayer + index * kLayerInputs, sizeof layer);
      const bool is_query_layer = index == layers_ - 1;
      if (is_query_layer) normalize(x, a_[kFinal], a_[kFinal + 1], x);
      normalize(x, layer.gamma1, layer.beta1, normed);
      attend(layer, is_query_layer ? top_query.data() : normed.data(), normed.data(), member);
      team_.wait();
      add(attended_, layer.projection_bias, x);
      normalize(x, layer.gamma2, layer.beta2, normed);
      feed(layer, normed.data(), member);
      team_.wait();
      add(fed_, layer.output_bias, x);
    }
    const float *table = a_[kWords];
    for (int64_t i = team_.share(classes_, member); i < team_.share(classes_, member + 1); ++i) {
      for (int64_t row = 0; row < rows_; ++row) {
        a_[a_.count - 1][row * classes_ + i] = dot(x.data() + row * width_, table + i * width_, width_);
      }
    }
  }

  void embed(Vector &x, Vector &top_query) const {
    for (int64_t row = 0; row < rows_; ++row) {
      const float *word = a_[kWords] + static_cast<int64_t>(a_.ints(kIds)[row]) * width_;
      const int64_t place = static_cast<int64_t>(a_.ints(kPositions)[row]) * width_;
      for (int64_t i = 0; i < width_; ++i) x[row * width_ + i] = word[i] + a_[kPlaces][place + i];
      std::copy_n(a_[kQueries] + place, width_, top_query.data() + row * width_);
    }
  }

  void normalize(const Vector &x, const float *gamma, const float *beta, Vector &normed) const {
    for (int64_t row = 0; row < rows_; ++row) {
      const float *from = x.data() + row * width_;
      float *to = normed.data() + row * width_;
      const auto [mean, scale] = moments(from, width_, a_.scalar(kEpsilon));
      for (int64_t i = 0; i < width_; ++i) to[i] = (from[i] - mean) * scale * gamma[i] + beta[i];
    }
  }

  void add(const std::vector<Vector> &shares, const float *bias, Vector &x) const {
    for (int64_t i = 0; i < rows_ * width_; ++i) x[i] += bias[i % width_];
    for (const Vector &share : shares) {
      for (int64_t i = 0; i < rows_ * width_; ++i) x[i] += share[i];
    }
  }

  // factor * (x (B, H) weight^T + bias) for one head -> y. Rows of y are `stride` apart; a row is written at its
  // position.
  void project(const float *x, const float *weight, const float *bias, int64_t head, float factor, float *y,
               const int32_t *positions, int64_t stride) const {
    for (int64_t i = 0; i < head_size_; ++i) {
      const int64_t output = head * head_size_ + i;
      for (int64_t row = 0; row < rows_; ++row) {
        y[row * stride + (positions ? positions[row] : 0) * head_size_ + i] =
            factor * (dot(x + row * width_, weight + output * width_, width_) + bias[output]);
      }
    }
  }

  // Computes the member's heads: writes new keys and values to the caches, attends to them, and adds up the heads' part
  // of the projection.
  void attend(const Layer &layer, const float *query, const float *x, int64_t member) {
    const float factor = 1.0f / std::sqrt(std::sqrt(static_cast<float>(head_size_)));
    const int64_t cache = capacity_ * head_size_, first = team_.share(heads_, member),
                  last = team_.share(heads_, member + 1);
    Vector q(rows_ * head_size_), weights(capacity_), mixed(rows_ * width_);
    for (int64_t head = first; head < last; ++head) {
      float *keys = layer.keys + head * cache, *values = layer.values + head * cache;
      project(query, layer.query, layer.query_bias, head, factor, q.data(), nullptr, head_size_);
      project(x, layer.key, layer.key_bias, head, factor, keys, a_.ints(kPositions), heads_ * cache);
      project(x, layer.value, layer.value_bias, head, 1.0f, values, a_.ints(kPositions), heads_ * cache);
      for (int64_t row = 0; row < rows_; ++row) {
        mix(q.data() + row * head_size_, keys + row * heads_ * cache, values + row * heads_ * cache,
            a_.ints(kPositions)[row] + 1, weights, mixed.data() + row * width_ + head * head_size_);
      }
    }
    attended_[member].assign(rows_ * width_, 0.0f);
    add_product(rows_, mixed.data(), width_, first * head_size_, last * head_size_, layer.projection, width_,
                attended_[member].data(), 0, width_);
  }

  // softmax(q keys^T) values, over the first `count` keys and values -> mixed (d)
  void mix(const float *q, const float *keys, const float *values, int64_t count, Vector &weights, float *mixed) const {
    for (int64_t i = 0; i < count; ++i) weights[i] = dot(q, keys + i * head_size_, head_size_);
    const float largest = maximum(weights.data(), count);
    float total = 0;
    for (int64_t i = 0; i < count; ++i) total += weights[i] = exponential(weights[i] - largest);
    for (int64_t i = 0; i < count; ++i) {
      const float share = weights[i] / total;
#pragma omp simd
      for (int64_t j = 0; j < head_size_; ++j) mixed[j] += share * values[i * head_size_ + j];
    }
  }

  // Computes the member's hidden units, and their part of the output.
  void feed(const Layer &layer, const float *x, int64_t member) {
    const int64_t begin = team_.share(inner_, member), end = team_.share(inner_, member + 1);
    Vector hidden(rows_ * inner_);
    for (int64_t row = 0; row < rows_; ++row) {
      std::copy(layer.mapping_bias + begin, layer.mapping_bias + end, hidden.data() + row * inner_ + begin);
    }
    add_product(rows_, x, width_, 0, width_, layer.mapping, inner_, hidden.data(), begin, end);
    for (int64_t row = 0; row < rows_; ++row) {
      float *units = hidden.data() + row * inner_;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) units[i] *= sigmoid(kGeluSlope * units[i]);
    }
    fed_[member].assign(rows_ * width_, 0.0f);
    add_product(rows_, hidden.data(), inner_, begin, end, layer.output, width_, fed_[member].data(), 0, width_);
  }

  const Arguments &a_;
  const int64_t rows_, width_, layers_, heads_, capacity_, head_size_, inner_, classes_;
  Team team_;
  std::vector<Vector> attended_, fed_;  // the parts of each member
};

// ids (B), positions (B), epsilon; tables of words (V, H), positions and top queries (S, H); final gamma and beta (H);
// the Layers -> logits (B, V). The caches change in place.
void decode_token(const Arguments &a) { Decoder(a).run(); }

}  // namespace
}  // namespace pangu

KERNEL(decode_token)
