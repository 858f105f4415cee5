// Code that the kernels share. mindspore.ops.Custom calls the kernels, or code with the same calling convention. Arrays
// are contiguous and float32; labels, ids and positions are int32. A comment `shapes -> shapes` gives the inputs and
// outputs of a kernel.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <future>
#include <thread>
#include <vector>

namespace pangu {

inline constexpr int64_t kLeastWork = 1 << 15;  // elements that are worth a thread
inline constexpr int64_t kBlock = 1 << 12;      // elements that are summed in float32 before the sum goes into a double
inline constexpr float kGeluSlope = 1.702f;
inline constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds a float to an integer

// The arguments that MindSpore passes to a kernel: inputs, then outputs.
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

// Calls body(begin, end) for parts of [0, count). Uses threads if `count` items of `work` elements are enough work.
template <class Body>
void parallel(int64_t count, int64_t work, const Body &body) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t parts = std::clamp<int64_t>(count * work / kLeastWork, 1, std::min(cores, std::max<int64_t>(count, 1)));
  std::vector<std::future<void>> others;
  for (int64_t part = 1; part < parts; ++part) {
    others.push_back(std::async(
        std::launch::async, [&body, part, parts, count] { body(count * part / parts, count * (part + 1) / parts); }));
  }
  body(0, count / parts);
  for (auto &other : others) other.get();
}

// Threads that work on one task together and wait for each other.
class Team {
 public:
  explicit Team(int64_t size) : size_(size), taken_(size) {}
  int64_t size() const { return size_; }

  // Index at which a member's share of `count` items begins.
  int64_t share(int64_t count, int64_t member) const { return count * member / size_; }

  // Calls work(member) for each member, in a thread of its own.
  template <class Work>
  void run(const Work &work) {
    std::vector<std::future<void>> others;
    for (int64_t member = 1; member < size_; ++member) {
      others.push_back(std::async(std::launch::async, [&work, member] { work(member); }));
    }
    work(0);
    for (auto &other : others) other.get();
  }

  // Takes the next of `count` items for a member. Returns `count` when all are taken. A member takes its own share
  // first, in order, because memory is read fastest as one stream; then it takes items that others have not reached. A
  // call of wait() starts the next round of items.
  int64_t next(int64_t count, int64_t member) {
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t other = (member + i) % size_;
      const int64_t found = share(count, other) + taken_[other].fetch_add(1);
      if (found < share(count, other + 1)) return found;
    }
    return count;
  }

  // Waits for all members. They arrive within microseconds of each other, so waiting spins; sleeping would take longer.
  void wait() {
    const int64_t round = round_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_.store(0);
      for (auto &taken : taken_) taken.store(0);
      round_.fetch_add(1);
    }
    for (int spins = 0; round_.load() == round; ++spins) {
      if (spins > 4096) std::this_thread::yield();
    }
  }

 private:
  const int64_t size_;
  std::atomic<int64_t> arrived_{0}, round_{0};
  std::vector<std::atomic<int64_t>> taken_;
};

// e^x to 2 ulp, for a float or a vector of floats. Int is the integer type of the same size. Computes 2^k * e^r with
// |r| <= ln(2) / 2 and a Taylor series for e^r. The result is 0 where it would be subnormal, because subnormal weights
// slow down the products that follow. x is limited to 88.
template <class Float, class Int>
inline Float exponential(Float x) {
  const Float least = Float{} - 87.0f, most = Float{} + 88.0f;
  const Float bounded = x < least ? least : (x > most ? most : x);  // NaN stays NaN
  const Float shifted = bounded * 1.44269504f + kRounder;
  const Float k = shifted - kRounder;
  const Float r = (bounded - k * 0.693145752f) - k * 1.42860677e-6f;  // ln(2) as a sum of two floats
  Float series = Float{} + 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  Int bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);  // the float 2^k
  Float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < least ? Float{} : series * power;
}

inline float exponential(float x) { return exponential<float, int32_t>(x); }

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

inline float maximum(const float *x, int64_t n) {
  float largest = x[0];
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
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

inline float dot(const float *x, const float *y, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i] * y[i];
  return total;
}

}  // namespace pangu

// Defines the entry point of a kernel. It returns 0, or 1 after an exception.
#define KERNEL(name)                                                                                                 \
  extern "C" int pangu_##name(int count, void **data, int *ranks, int64_t **shapes, const char **, void *, void *) { \
    try {                                                                                                            \
      pangu::name({count, data, ranks, shapes});                                                                     \
      return 0;                                                                                                      \
    } catch (...) {                                                                                                  \
      return 1;                                                                                                      \
    }                                                                                                                \
  }
