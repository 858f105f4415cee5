// What the kernels share. They are called by mindspore.ops.Custom, or in its manner; every array is contiguous float32 but for labels and
// positions, which are int32. Comments `shape -> shape` give a kernel's inputs and outputs.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <future>
#include <thread>
#include <vector>

namespace pangu {

inline constexpr int64_t kLeastWork = 1 << 15;  // elements for which it is worth starting a thread
inline constexpr int64_t kBlock = 1 << 12;      // elements that are added up in float32 before they go into a double
inline constexpr float kGeluSlope = 1.702f;

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

// The entry point of a kernel: 0, or 1 where it failed.
#define KERNEL(name)                                                                                                \
  extern "C" int pangu_##name(int count, void **data, int *ranks, int64_t **shapes, const char **, void *, void *) { \
    try {                                                                                                           \
      pangu::name({count, data, ranks, shapes});                                                                           \
      return 0;                                                                                                     \
    } catch (...) {                                                                                                 \
      return 1;                                                                                                     \
    }                                                                                                               \
  }
