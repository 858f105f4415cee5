// Kernels for mindspore.ops.Custom: of a training step, each one pass over its data, and a whole decoded token.
//
// Every array is contiguous float32 but the labels, which are int32; `shape -> shape` comments give inputs and outputs.
// In training no result depends on the number of threads: a thread owns whole rows, columns or blocks.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <future>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kLeastWork = 1 << 15;  // elements for which it is worth starting a thread
constexpr int64_t kBlock = 1 << 12;      // elements that are added up in float32 before they go into a double
constexpr float kGeluSlope = 1.702f;

// What MindSpore hands to a kernel: inputs, then outputs.
struct Arguments {
  int count;
  void **data;
  int *ranks;
  int64_t **shapes;

  float *operator[](int i) const { return static_cast<float *>(data[i]); }
  float scalar(int i) const { return *(*this)[i]; }
  const int32_t *ints(int i) const { return static_cast<const int32_t *>(data[i]); }
  int64_t dim(int i, int axis) const { return shapes[i][axis]; }
  int64_t last_dim(int i) const { return shapes[i][ranks[i] - 1]; }
  int64_t size(int i) const {
    int64_t product = 1;
    for (int axis = 0; axis < ranks[i]; ++axis) product *= shapes[i][axis];
    return product;
  }
};

// body(begin, end) over parts of [0, count), in threads where `count` items of `work` elements are enough for them.
template <class Body>
void parallel(int64_t count, int64_t work, const Body &body) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t parts = std::clamp<int64_t>(count * work / kLeastWork, 1, std::min(cores, std::max<int64_t>(count, 1)));
  std::vector<std::future<void>> others;
  for (int64_t part = 1; part < parts; ++part) {
    others.push_back(std::async(std::launch::async, [&body, part, parts, count] {
      body(count * part / parts, count * (part + 1) / parts);
    }));
  }
  body(0, count / parts);
  for (auto &other : others) other.get();
}

// e^x to 2 ulp: 2^k * e^r with |r| <= ln(2) / 2, e^r by its Taylor series. 0 where it would be subnormal, as subnormal
// weights would slow the products down that follow; the largest power of two's worth above 88.
inline float exponential(float x) {
  const float bounded = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);  // NaN stays
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const float shifted = bounded * 1.44269504f + kRounder;
  const float k = shifted - kRounder;
  const float r = (bounded - k * 0.693145752f) - k * 1.42860677e-6f;  // ln(2) in two parts
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + (127 << 23);  // the float 2^k
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : series * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

inline float maximum(const float *x, int64_t n) {
  float largest = x[0];
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// scores (B, A, Q, K), bias (B, 1, Q, K) -> softmax(scores + bias) (B, A, Q, K)
void masked_softmax(const Arguments &a) {
  const int64_t heads = a.dim(0, 1), queries = a.dim(0, 2), keys = a.dim(0, 3);
  parallel(a.size(0) / keys, keys, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *scores = a[0] + row * keys;
      const float *bias = a[1] + (row / (heads * queries) * queries + row % queries) * keys;
      float *weights = a[2] + row * keys;
#pragma omp simd
      for (int64_t i = 0; i < keys; ++i) weights[i] = scores[i] + bias[i];
      const float largest = maximum(weights, keys);
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < keys; ++i) total += weights[i] = exponential(weights[i] - largest);
      const float share = 1.0f / total;
#pragma omp simd
      for (int64_t i = 0; i < keys; ++i) weights[i] *= share;
    }
  });
}

// weights p (..., K), their gradient (..., K) -> gradient of the scores, p * (dp - sum(p * dp))
void masked_softmax_gradient(const Arguments &a) {
  const int64_t keys = a.last_dim(0);
  parallel(a.size(0) / keys, keys, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *p = a[0] + row * keys, *dp = a[1] + row * keys;
      float *gradient = a[2] + row * keys;
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < keys; ++i) dot += p[i] * dp[i];
#pragma omp simd
      for (int64_t i = 0; i < keys; ++i) gradient[i] = p[i] * (dp[i] - dot);
    }
  });
}

struct Moments {
  float mean, scale;  // scale = 1 / sqrt(variance + epsilon)
};

inline Moments moments(const float *x, int64_t n, float epsilon) {
  float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i];
  const float mean = total / n;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0f / std::sqrt(squares / n + epsilon)};
}

// x (..., H), gamma (H), beta (H), epsilon -> (..., H)
void layernorm(const Arguments &a) {
  const int64_t width = a.last_dim(0);
  const float *gamma = a[1], *beta = a[2], epsilon = a.scalar(3);
  parallel(a.size(0) / width, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *x = a[0] + row * width;
      float *normed = a[4] + row * width;
      const auto [mean, scale] = moments(x, width, epsilon);
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) normed[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
    }
  });
}

// x (..., H), gamma (H), epsilon, dy (..., H) -> gradients of x, gamma (H) and beta (H)
void layernorm_gradient(const Arguments &a) {
  const int64_t width = a.last_dim(0), rows = a.size(0) / width;
  const float *gamma = a[1], epsilon = a.scalar(2);
  std::vector<Moments> of_row(rows);
  parallel(rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *x = a[0] + row * width, *dy = a[3] + row * width;
      float *dx = a[4] + row * width;
      const auto [mean, scale] = of_row[row] = moments(x, width, epsilon);
      float total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
      for (int64_t i = 0; i < width; ++i) {
        const float dnormed = dy[i] * gamma[i];
        total += dnormed;
        dot += dnormed * (x[i] - mean);
      }
      const float shift = total / width, slope = dot * scale * scale / width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) dx[i] = scale * (dy[i] * gamma[i] - shift - (x[i] - mean) * slope);
    }
  });
  parallel(width, rows, [&](int64_t begin, int64_t end) {
    float *dgamma = a[5], *dbeta = a[6];
    std::fill(dgamma + begin, dgamma + end, 0.0f);
    std::fill(dbeta + begin, dbeta + end, 0.0f);
    for (int64_t row = 0; row < rows; ++row) {
      const float *x = a[0] + row * width, *dy = a[3] + row * width;
      const auto [mean, scale] = of_row[row];
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        dgamma[i] += dy[i] * (x[i] - mean) * scale;
        dbeta[i] += dy[i];
      }
    }
  });
}

// x (F, N), bias (F) -> y * sigmoid(1.702 y) (F, N), y = x + bias
void biased_fast_gelu(const Arguments &a) {
  const int64_t width = a.dim(0, 1);
  parallel(a.dim(0, 0), width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *x = a[0] + row * width, bias = a[1][row];
      float *activated = a[2] + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) activated[i] = (x[i] + bias) * sigmoid(kGeluSlope * (x[i] + bias));
    }
  });
}

// x (F, N), bias (F), gradient (F, N) -> gradients of x and bias (F)
void biased_fast_gelu_gradient(const Arguments &a) {
  const int64_t width = a.dim(0, 1);
  parallel(a.dim(0, 0), width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *x = a[0] + row * width, bias = a[1][row], *gradient = a[2] + row * width;
      float *dx = a[3] + row * width;
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < width; ++i) {
        const float scaled = kGeluSlope * (x[i] + bias), gate = sigmoid(scaled);
        dx[i] = gradient[i] * gate * (1.0f + scaled * (1.0f - gate));
        total += dx[i];
      }
      a[4][row] = total;
    }
  });
}

// x (B, M, N, d), factor -> factor * x with the middle axes swapped (B, N, M, d)
void swap_axes(const Arguments &a) {
  const int64_t middle = a.dim(0, 1), inner = a.dim(0, 2), width = a.dim(0, 3);
  const float factor = a.scalar(1);
  parallel(a.dim(0, 0) * inner * middle, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t batch = row / (inner * middle), n = row / middle % inner, m = row % middle;
      const float *x = a[0] + ((batch * middle + m) * inner + n) * width;
      float *swapped = a[2] + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) swapped[i] = factor * x[i];
    }
  });
}

int32_t checked_label(int32_t label, int64_t classes) {
  if (label < 0 || label >= classes) throw std::out_of_range("label");
  return label;
}

// logits (N, V), labels (N) -> negative log-likelihoods (N)
void cross_entropy(const Arguments &a) {
  const int64_t classes = a.dim(0, 1);
  parallel(a.dim(0, 0), classes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *logits = a[0] + row * classes;
      const float largest = maximum(logits, classes);
      double total = 0;
      for (int64_t block = 0; block < classes; block += kBlock) {
        const int64_t block_end = std::min(block + kBlock, classes);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = block; i < block_end; ++i) part += exponential(logits[i] - largest);
        total += part;
      }
      a[2][row] = static_cast<float>(std::log(total) + largest - logits[checked_label(a.ints(1)[row], classes)]);
    }
  });
}

// logits (N, V), labels (N), losses (N), their gradient (N) -> gradient of the logits, (softmax - one-hot) * gradient
void cross_entropy_gradient(const Arguments &a) {
  const int64_t classes = a.dim(0, 1);
  parallel(a.dim(0, 0), classes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *logits = a[0] + row * classes, gradient = a[3][row];
      const int32_t label = checked_label(a.ints(1)[row], classes);
      const float log_total = a[2][row] + logits[label];
      float *dlogits = a[4] + row * classes;
#pragma omp simd
      for (int64_t i = 0; i < classes; ++i) dlogits[i] = gradient * exponential(logits[i] - log_total);
      dlogits[label] -= gradient;
    }
  });
}

double sum_of_squares(const float *x, int64_t n) {
  constexpr int64_t kLanes = 32;  // sums that do not wait for each other
  double sums[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      sums[lane] += value * value;
    }
  }
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += static_cast<double>(x[i]) * x[i];
  return std::accumulate(sums, sums + kLanes, 0.0);
}

// any number of arrays -> the root of the sum of all squares (1): infinite where that sum leaves the range of float32,
// as with the plain operators, so that both skip the same steps
void global_norm(const Arguments &a) {
  double total = 0;
  for (int i = 0; i + 1 < a.count; ++i) {
    const int64_t size = a.size(i);
    std::vector<double> parts((size + kBlock - 1) / kBlock);
    parallel(parts.size(), kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        parts[block] = sum_of_squares(a[i] + block * kBlock, std::min(kBlock, size - block * kBlock));
      }
    });
    total = std::accumulate(parts.begin(), parts.end(), total);
  }
  *a[a.count - 1] = std::sqrt(static_cast<float>(total));
}

// parameter, m, v (changed in place), gradient; scalars factor, lr, beta1_power, beta2_power, decay;
// {beta1, 1 - beta1, beta2, 1 - beta2, epsilon} -> a number to depend on (1)
void adam_update(const Arguments &a) {
  float *parameter = a[0], *m = a[1], *v = a[2];
  const float *gradient = a[3], *constants = a[9];
  const float factor = a.scalar(4), rate = a.scalar(5), decay = a.scalar(8);
  const float correction1 = 1.0f / (1.0f - a.scalar(6)), correction2 = 1.0f / (1.0f - a.scalar(7));
  const float keep1 = constants[0], add1 = constants[1] * factor, keep2 = constants[2];
  const float add2 = constants[3], epsilon = constants[4];
  parallel(a.size(0), 1, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float scaled = gradient[i] * factor;
      m[i] = keep1 * m[i] + add1 * gradient[i];
      v[i] = keep2 * v[i] + add2 * scaled * scaled;
      const float change = m[i] * correction1 / (std::sqrt(v[i] * correction2) + epsilon);
      parameter[i] -= rate * (change + decay * parameter[i]);
    }
  });
  *a[10] = 0;
}

// Threads that work on one thing together and wait for each other.
class Team {
 public:
  explicit Team(int64_t size) : size_(size) {}
  int64_t size() const { return size_; }

  // work(member) in as many threads as there are members
  template <class Work>
  void run(const Work &work) {
    std::vector<std::future<void>> others;
    for (int64_t member = 1; member < size_; ++member) {
      others.push_back(std::async(std::launch::async, [&work, member] { work(member); }));
    }
    work(0);
    for (auto &other : others) other.get();
  }

  // Returns when all members have called it. They come within microseconds of each other: sleeping would cost more.
  void wait() {
    const int64_t round = round_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_.store(0);
      round_.fetch_add(1);
    }
    for (int spins = 0; round_.load() == round; ++spins) {
      if (spins > 4096) std::this_thread::yield();
    }
  }

 private:
  const int64_t size_;
  std::atomic<int64_t> arrived_{0}, round_{0};
};

// y (B, O) += inputs first to last of x (B, I) times columns begin to end of weight (I, O): each weight is read once,
// four rows of weights at a time.
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

inline float dot(const float *x, const float *y, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i] * y[i];
  return total;
}

// The parameters of a layer, in the order in which cells.py hands them over.
struct Layer {
  const float *gamma1, *beta1, *query, *query_bias, *key, *key_bias, *value, *value_bias, *projection, *projection_bias;
  const float *gamma2, *beta2, *mapping, *mapping_bias, *output, *output_bias;
  float *keys, *values;  // the caches (B, A, C, d)
};
constexpr int kLayerInputs = 18, kFirstLayer = 6;

// One token's way through the layers. A member of the team computes whole heads and a share of the hidden units, and
// their share of the products that follow; these shares are added up by everyone, so a layer has two meetings. Sums so
// depend on the number of threads in their last bits.
class Decoder {
 public:
  explicit Decoder(const Arguments &a)
      : a_(a), rows_(a.dim(0, 0)), width_(a.dim(0, 1)), layers_((a.count - kFirstLayer - 2) / kLayerInputs),
        heads_(a.dim(kFirstLayer + 16, 1)), capacity_(a.dim(kFirstLayer + 16, 2)), head_size_(width_ / heads_),
        inner_(a.dim(kFirstLayer + 12, 1)), classes_(a.dim(a.count - 2, 0)),
        team_(std::max(1u, std::thread::hardware_concurrency())), attended_(team_.size()), fed_(team_.size()) {}

  void run() {
    team_.run([this](int64_t member) { work(member); });
  }

 private:
  using Vector = std::vector<float>;

  // Every member keeps the residual stream for itself.
  void work(int64_t member) {
    Vector x(a_[0], a_[0] + rows_ * width_), normed(x.size());
    for (int64_t index = 0; index < layers_; ++index) {
      Layer layer;
      std::memcpy(&layer, a_.data + kFirstLayer + index * kLayerInputs, sizeof layer);
      const bool is_query_layer = index == layers_ - 1;
      if (is_query_layer) normalize(x, a_[3], a_[4], x);
      normalize(x, layer.gamma1, layer.beta1, normed);
      attend(layer, is_query_layer ? a_[1] : normed.data(), normed.data(), member);
      team_.wait();
      add(attended_, layer.projection_bias, x);
      normalize(x, layer.gamma2, layer.beta2, normed);
      feed(layer, normed.data(), member);
      team_.wait();
      add(fed_, layer.output_bias, x);
    }
    const float *table = a_[a_.count - 2];
    for (int64_t i = part(classes_, member); i < part(classes_, member + 1); ++i) {
      for (int64_t row = 0; row < rows_; ++row) {
        a_[a_.count - 1][row * classes_ + i] = dot(x.data() + row * width_, table + i * width_, width_);
      }
    }
  }

  int64_t part(int64_t count, int64_t member) const { return count * member / team_.size(); }

  void normalize(const Vector &x, const float *gamma, const float *beta, Vector &normed) const {
    for (int64_t row = 0; row < rows_; ++row) {
      const float *from = x.data() + row * width_;
      float *to = normed.data() + row * width_;
      const auto [mean, scale] = moments(from, width_, a_.scalar(5));
      for (int64_t i = 0; i < width_; ++i) to[i] = (from[i] - mean) * scale * gamma[i] + beta[i];
    }
  }

  void add(const std::vector<Vector> &shares, const float *bias, Vector &x) const {
    for (int64_t i = 0; i < rows_ * width_; ++i) x[i] += bias[i % width_];
    for (const Vector &share : shares) {
      for (int64_t i = 0; i < rows_ * width_; ++i) x[i] += share[i];
    }
  }

  // factor * (x (B, H) weight^T + bias) of one head -> y, row after row `stride` apart, at its position in each
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

  // The member's heads: new keys and values into the caches, attention over them, and their share of the projection.
  void attend(const Layer &layer, const float *query, const float *x, int64_t member) {
    const float factor = 1.0f / std::sqrt(std::sqrt(static_cast<float>(head_size_)));
    const int64_t cache = capacity_ * head_size_, first = part(heads_, member), last = part(heads_, member + 1);
    Vector q(rows_ * head_size_), weights(capacity_), mixed(rows_ * width_);
    for (int64_t head = first; head < last; ++head) {
      float *keys = layer.keys + head * cache, *values = layer.values + head * cache;
      project(query, layer.query, layer.query_bias, head, factor, q.data(), nullptr, head_size_);
      project(x, layer.key, layer.key_bias, head, factor, keys, a_.ints(2), heads_ * cache);
      project(x, layer.value, layer.value_bias, head, 1.0f, values, a_.ints(2), heads_ * cache);
      for (int64_t row = 0; row < rows_; ++row) {
        mix(q.data() + row * head_size_, keys + row * heads_ * cache, values + row * heads_ * cache,
            a_.ints(2)[row] + 1, weights, mixed.data() + row * width_ + head * head_size_);
      }
    }
    attended_[member].assign(rows_ * width_, 0.0f);
    add_product(rows_, mixed.data(), width_, first * head_size_, last * head_size_, layer.projection, width_,
                attended_[member].data(), 0, width_);
  }

  // softmax(q keys^T) values over the first `count` of them -> mixed (d)
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

  // The member's hidden units, and their share of the output.
  void feed(const Layer &layer, const float *x, int64_t member) {
    const int64_t begin = part(inner_, member), end = part(inner_, member + 1);
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
  std::vector<Vector> attended_, fed_;  // each member's shares
};

// x (B, H), query layer's queries (B, H), positions (B), final gamma and beta (H), epsilon; the Layers; table (V, H)
// -> logits (B, V). The caches change in place.
void decode_token(const Arguments &a) { Decoder(a).run(); }

}  // namespace

// The entry point of a kernel: 0, or 1 where it failed.
#define KERNEL(name)                                                                                                \
  extern "C" int pangu_##name(int count, void **data, int *ranks, int64_t **shapes, const char **, void *, void *) { \
    try {                                                                                                           \
      name({count, data, ranks, shapes});                                                                           \
      return 0;                                                                                                     \
    } catch (...) {                                                                                                 \
      return 1;                                                                                                     \
    }                                                                                                               \
  }

KERNEL(masked_softmax)
KERNEL(masked_softmax_gradient)
KERNEL(layernorm)
KERNEL(layernorm_gradient)
KERNEL(biased_fast_gelu)
KERNEL(biased_fast_gelu_gradient)
KERNEL(swap_axes)
KERNEL(cross_entropy)
KERNEL(cross_entropy_gradient)
KERNEL(global_norm)
KERNEL(adam_update)
KERNEL(decode_token)
