// Products of float32 matrices whose operands are rounded to bfloat16. The sums are float32, and so are the results.
// oneDNN multiplies, by AVX-512 BF16 or AMX; src/cpu_kernels/half_gemm.py hands over its function.

#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>

#include "common.h"

namespace pangu {
namespace {

using Half = uint16_t;

// C (m, n) = alpha * op(A) op(B) + beta * C, in rows; op is 'N' or 'T'. It computes in the calling thread if pool is
// null.
using Gemm = int (*)(char op_a, char op_b, int64_t m, int64_t n, int64_t k, float alpha, const Half *a, int64_t lda,
                     const Half *b, int64_t ldb, float beta, float *c, int64_t ldc, void *pool);

constexpr int64_t kLeastProduct = 1 << 20;  // multiplications that are worth a thread
constexpr int64_t kPage = 4096;

Gemm gemm = nullptr;
std::mutex one_product;  // MindSpore may call kernels at the same time; a product has all cores and the memory below

// Memory for a rounded matrix. It grows and is kept, because new pages cost as much time as the rounding.
class Scratch {
 public:
  Half *of(int64_t size) {
    if (size > size_) {
      data_.reset();
      data_.reset(static_cast<Half *>(operator new[](size * sizeof(Half), std::align_val_t(kPage))));
      size_ = size;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(Half *data) const { operator delete[](data, std::align_val_t(kPage)); }
  };
  std::unique_ptr<Half[], Free> data_;
  int64_t size_ = 0;
};

Scratch of_a, of_b, of_c;

// To the nearest bfloat16, ties to even. NaN stays NaN, with its quiet bit set.
inline Half rounded(uint32_t bits) {
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
  return static_cast<Half>((bits & 0x7fffffff) > 0x7f800000 ? nan : nearest);
}

// Rounds a member's share of x.
void round(const float *x, Half *y, int64_t size, const Team &team, int64_t member) {
  const int64_t end = team.share(size, member + 1);
#pragma omp simd
  for (int64_t i = team.share(size, member); i < end; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    y[i] = rounded(bits);
  }
}

// A matrix in rows of `stride` numbers, or the transpose of what is stored so.
struct Matrix {
  Half *data;
  int64_t stride;
  bool is_transposed;

  Matrix transposed() const { return {data, stride, !is_transposed}; }
  char op() const { return is_transposed ? 'T' : 'N'; }
  const Half *from_row(int64_t row) const { return data + (is_transposed ? row : row * stride); }
  const Half *from_column(int64_t column) const { return data + (is_transposed ? column * stride : column); }
};

// The number of threads that share out the rows of a product. The others share out its columns. Each thread reads its
// rows of the first matrix and its columns of the second, so both together should be few.
int64_t parts_of_rows(int64_t rows, int64_t columns, int64_t threads) {
  int64_t best = 1;
  for (int64_t parts = 2; parts <= threads; ++parts) {
    const auto read = [&](int64_t down) { return rows / down + columns * down / threads; };
    if (threads % parts == 0 && read(parts) < read(best)) best = parts;
  }
  return best;
}

// Computes a member's block of the product of a (rows, inner) and b (inner, columns). Returns whether that worked.
bool multiply(const Matrix &a, const Matrix &b, float *product, int64_t rows, int64_t columns, int64_t inner,
              const Team &team, int64_t member) {
  const int64_t down = parts_of_rows(rows, columns, team.size()), across = team.size() / down;
  const int64_t i = member / across, j = member % across;
  const int64_t top = rows * i / down, left = columns * j / across;
  const int64_t height = rows * (i + 1) / down - top, width = columns * (j + 1) / across - left;
  if (height == 0 || width == 0) return true;
  return gemm(a.op(), b.op(), height, width, inner, 1.0f, a.from_row(top), a.stride, b.from_column(left), b.stride,
              0.0f, product + top * columns + left, columns, nullptr) == 0;
}

// The matrices of a product: op(a) (rows, inner) and op(b) (inner, columns).
struct Operands {
  Matrix a, b;
  int64_t rows, inner, columns;

  // Inputs 0 and 1 of a kernel. Input 2 says whether a is stored as (inner, rows), b as (columns, inner).
  explicit Operands(const Arguments &given)
      : a{of_a.of(given.size(0)), given.dim(0, 1), given.ints(2)[0] != 0},
        b{of_b.of(given.size(1)), given.dim(1, 1), given.ints(2)[1] != 0}, rows(given.dim(0, a.is_transposed ? 1 : 0)),
        inner(given.dim(0, a.is_transposed ? 0 : 1)), columns(given.dim(1, b.is_transposed ? 0 : 1)) {}

  int64_t threads() const {
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    return std::clamp<int64_t>(rows * columns * inner / kLeastProduct, 1, cores);
  }
};

// a, b, {a is transposed, b is transposed} -> op(a) op(b)
void half_product(const Arguments &given) {
  const std::lock_guard<std::mutex> lock(one_product);
  const Operands x(given);
  Team team(x.threads());
  std::atomic<bool> works{true};
  team.run([&](int64_t member) {
    round(given[0], x.a.data, given.size(0), team, member);
    round(given[1], x.b.data, given.size(1), team, member);
    team.wait();
    if (!multiply(x.a, x.b, given[3], x.rows, x.columns, x.inner, team, member)) works = false;
  });
  if (!works) throw std::runtime_error("oneDNN's product failed");
}

// a, b, {a is transposed, b is transposed}, gradient of the product -> gradients of a and b
void half_product_gradient(const Arguments &given) {
  const std::lock_guard<std::mutex> lock(one_product);
  const Operands x(given);
  const Matrix dc{of_c.of(given.size(3)), x.columns, false};
  const auto gradient_of_a = [&](const Team &team, int64_t member) {
    return x.a.is_transposed ? multiply(x.b, dc.transposed(), given[4], x.inner, x.rows, x.columns, team, member)
                             : multiply(dc, x.b.transposed(), given[4], x.rows, x.inner, x.columns, team, member);
  };
  const auto gradient_of_b = [&](const Team &team, int64_t member) {
    return x.b.is_transposed ? multiply(dc.transposed(), x.a, given[5], x.columns, x.inner, x.rows, team, member)
                             : multiply(x.a.transposed(), dc, given[5], x.inner, x.columns, x.rows, team, member);
  };
  Team team(x.threads());
  std::atomic<bool> works{true};
  team.run([&](int64_t member) {
    round(given[0], x.a.data, given.size(0), team, member);
    round(given[1], x.b.data, given.size(1), team, member);
    round(given[3], dc.data, given.size(3), team, member);
    team.wait();
    if (!gradient_of_a(team, member) || !gradient_of_b(team, member)) works = false;
  });
  if (!works) throw std::runtime_error("oneDNN's product failed");
}

}  // namespace
}  // namespace pangu

// Takes the function that multiplies. It must be called before the kernels.
extern "C" void pangu_use_half_gemm(void *function) { pangu::gemm = reinterpret_cast<pangu::Gemm>(function); }

KERNEL(half_product)
KERNEL(half_product_gradient)
