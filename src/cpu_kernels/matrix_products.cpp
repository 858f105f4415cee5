// Products of float32 matrices, as they are or with operands that are rounded to bfloat16. The sums are float32, and so
// are the results. oneDNN multiplies, the rounded ones by AVX-512 BF16 or AMX; src/cpu_kernels/onednn.py hands over its
// functions.

#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <type_traits>

#include "common.h"

namespace pangu {
namespace {

using Half = uint16_t;

// C (m, n) = alpha * op(A) op(B) + beta * C, in rows; op is 'N' or 'T'. It computes in the calling thread if pool is
// null.
template <class Number>
using Gemm = int (*)(char op_a, char op_b, int64_t m, int64_t n, int64_t k, float alpha, const Number *a, int64_t lda,
                     const Number *b, int64_t ldb, float beta, float *c, int64_t ldc, void *pool);

constexpr int64_t kLeastProduct = 1 << 20;  // multiplications that are worth a thread
constexpr int64_t kPage = 4096;

template <class Number>
Gemm<Number> gemm = nullptr;
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
template <class Number>
struct Matrix {
  const Number *data;
  int64_t stride;
  bool is_transposed;

  Matrix transposed() const { return {data, stride, !is_transposed}; }
  char op() const { return is_transposed ? 'T' : 'N'; }
  const Number *from_row(int64_t row) const { return data + (is_transposed ? row : row * stride); }
  const Number *from_column(int64_t column) const { return data + (is_transposed ? column * stride : column); }
};

// A float32 array as an operand: itself, or its rounded numbers once all members of a team have called prepare().
template <class Number>
class Operand {
 public:
  Operand(const float *given, int64_t size, Scratch &scratch) : given_(given), size_(size) {
    if constexpr (kRounds) rounded_ = scratch.of(size);
  }

  const Number *data() const {
    if constexpr (kRounds) return rounded_;
    return reinterpret_cast<const Number *>(given_);
  }

  void prepare(const Team &team, int64_t member) const {
    if constexpr (kRounds) round(given_, rounded_, size_, team, member);
  }

 private:
  static constexpr bool kRounds = std::is_same_v<Number, Half>;
  const float *given_;
  int64_t size_;
  Half *rounded_ = nullptr;
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
template <class Number>
bool multiply(const Matrix<Number> &a, const Matrix<Number> &b, float *product, int64_t rows, int64_t columns,
              int64_t inner, const Team &team, int64_t member) {
  const int64_t down = parts_of_rows(rows, columns, team.size()), across = team.size() / down;
  const int64_t i = member / across, j = member % across;
  const int64_t top = rows * i / down, left = columns * j / across;
  const int64_t height = rows * (i + 1) / down - top, width = columns * (j + 1) / across - left;
  if (height == 0 || width == 0) return true;
  return gemm<Number>(a.op(), b.op(), height, width, inner, 1.0f, a.from_row(top), a.stride, b.from_column(left),
                      b.stride, 0.0f, product + top * columns + left, columns, nullptr) == 0;
}

// A product of op(a) (rows, inner) and op(b) (inner, columns). Inputs 0 and 1 of a kernel are a and b. Input 2 says
// whether a is stored as (inner, rows), b as (columns, inner).
template <class Number>
class Product {
 public:
  explicit Product(const Arguments &given)
      : given_(given), held_a_(given[0], given.size(0), of_a), held_b_(given[1], given.size(1), of_b),
        a_{held_a_.data(), given.dim(0, 1), given.ints(2)[0] != 0},
        b_{held_b_.data(), given.dim(1, 1), given.ints(2)[1] != 0}, rows_(given.dim(0, a_.is_transposed ? 1 : 0)),
        inner_(given.dim(0, a_.is_transposed ? 0 : 1)), columns_(given.dim(1, b_.is_transposed ? 0 : 1)) {}

  // Output 3 is the product.
  void forward() const {
    run([](const Team &, int64_t) {},
        [this](const Team &team, int64_t member) {
          return multiply(a_, b_, given_[3], rows_, columns_, inner_, team, member);
        });
  }

  // Input 3 is the gradient of the product; outputs 4 and 5 are those of a and b.
  void backward() const {
    const Operand<Number> held(given_[3], given_.size(3), of_c);
    const Matrix<Number> c{held.data(), columns_, false};
    run([&](const Team &team, int64_t member) { held.prepare(team, member); },
        [&](const Team &team, int64_t member) {
          const bool works = a_.is_transposed
                                 ? multiply(b_, c.transposed(), given_[4], inner_, rows_, columns_, team, member)
                                 : multiply(c, b_.transposed(), given_[4], rows_, inner_, columns_, team, member);
          return works &&
                 (b_.is_transposed ? multiply(c.transposed(), a_, given_[5], columns_, inner_, rows_, team, member)
                                   : multiply(a_.transposed(), c, given_[5], inner_, columns_, rows_, team, member));
        });
  }

 private:
  // Calls compute(team, member) in all members of a team when the operands are prepared; it returns whether it worked.
  template <class Prepare, class Compute>
  void run(const Prepare &prepare, const Compute &compute) const {
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    Team team(std::clamp<int64_t>(rows_ * columns_ * inner_ / kLeastProduct, 1, cores));
    std::atomic<bool> works{true};
    team.run([&](int64_t member) {
      held_a_.prepare(team, member);
      held_b_.prepare(team, member);
      prepare(team, member);
      team.wait();
      if (!compute(team, member)) works = false;
    });
    if (!works) throw std::runtime_error("oneDNN's product failed");
  }

  const Arguments &given_;
  const Operand<Number> held_a_, held_b_;
  const Matrix<Number> a_, b_;
  const int64_t rows_, inner_, columns_;
};

// a, b, {a is transposed, b is transposed} -> op(a) op(b)
template <class Number>
void compute_product(const Arguments &given) {
  const std::lock_guard<std::mutex> lock(one_product);
  Product<Number>(given).forward();
}

// a, b, {a is transposed, b is transposed}, gradient of the product -> gradients of a and b
template <class Number>
void compute_gradients(const Arguments &given) {
  const std::lock_guard<std::mutex> lock(one_product);
  Product<Number>(given).backward();
}

constexpr auto product = compute_product<float>, half_product = compute_product<Half>;
constexpr auto product_gradient = compute_gradients<float>, half_product_gradient = compute_gradients<Half>;

}  // namespace
}  // namespace pangu

// Take the functions that multiply. They must be called before the kernels.
extern "C" void pangu_use_gemm(void *function) { pangu::gemm<float> = reinterpret_cast<pangu::Gemm<float>>(function); }
extern "C" void pangu_use_half_gemm(void *function) {
  pangu::gemm<pangu::Half> = reinterpret_cast<pangu::Gemm<pangu::Half>>(function);
}

KERNEL(product)
KERNEL(product_gradient)
KERNEL(half_product)
KERNEL(half_product_gradient)
