// Kernels of a training step. Each makes one pass over its data. Results do not depend on the number of threads,
// because a thread computes whole rows, columns or blocks.

#include <numeric>
#include <stdexcept>

#include "common.h"

namespace pangu {
namespace {

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
  constexpr int64_t kLanes = 32;  // independent sums
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

// any number of arrays -> root of the sum of all squares (1). It is infinite if the sum leaves the range of float32, as
// with the plain operators, so that both skip the same steps.
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
// {beta1, 1 - beta1, beta2, 1 - beta2, epsilon} -> a number for ops.depend (1)
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

}  // namespace
}  // namespace pangu

KERNEL(layernorm)
KERNEL(layernorm_gradient)
KERNEL(biased_fast_gelu)
KERNEL(biased_fast_gelu_gradient)
KERNEL(cross_entropy)
KERNEL(cross_entropy_gradient)
KERNEL(global_norm)
KERNEL(adam_update)
