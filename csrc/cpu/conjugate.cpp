#include "conjugate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "batch.h"
#include "operations.h"
#include "padded.h"
#include "scratch.h"

namespace uot {
namespace {

// In four partial sums, which the compiler may not make on its own.
double dot(const double* x, const double* y, int64_t length) {
  double sum[4] = {};
  for (int64_t j = 0; j < length; j += 4)  // arrays are padded, with zeros
    for (int k = 0; k < 4; ++k) sum[k] += x[j + k] * y[j + k];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// One problem on its way.
class System {
 public:
  // `threads` is how many will run a product.
  System(const AdjointTask& task, int threads)
      : task_(task), m_(task.cost.m), length_(padded(m_)), threads_(threads), job_(task.cost),
        arena_(size_t(8 * (9 * length_ + padded(job_.n)) + 10 * int64_t(kAlignment))), inverse_(arena_, m_),
        null_(arena_, m_), weight_(arena_, m_), x_(arena_, m_), residual_(arena_, m_), z_(arena_, m_), p_(arena_, m_),
        operand_(arena_, m_), product_(arena_, m_), through_(arena_, job_.n) {
    job_.items = nullptr;
    job_.count = 1;
    job_.operand = operand_;
    job_.col_out = product_;
    job_.row_out = through_;
    const int64_t bytes = lay_out(job_, Operation::kSchur, task.is_double, threads, nullptr);
    scratch_ = scratch(size_t(bytes));
    lay_out(job_, Operation::kSchur, task.is_double, threads, scratch_.get());
    const PhaseList all = phases_of(job_, Operation::kSchur, task.is_double);
    for (int k = 0; k < all.count; ++k) {
      PhaseList& part = k < kAdjointSetup ? setup_ : pass_;
      part.phases[part.count++] = all.phases[k];
    }
  }

  bool busy() const { return index_ >= 0; }

  void begin(int64_t index) {
    index_ = index;
    const Job& from = task_.cost;
    job_.cost = static_cast<const char*>(from.cost) + from.item(index) * from.batch_stride * (task_.is_double ? 8 : 4);
    job_.reg = from.reg + index;
    job_.log_u = from.log_u + index * job_.n;
    job_.log_v = from.log_v + index * m_;
    job_.row_diagonal = from.row_diagonal + index * job_.n;
    job_.empty = from.empty ? from.empty + index * block_min_entries(job_.n, m_) : nullptr;
    run_phases(job_, setup_, threads_);
    diagonal_ = task_.col_diagonal + index * m_;
    const double *preconditioner = task_.preconditioner + index * m_, *root = task_.root + index * m_;
    for (int64_t j = 0; j < m_; ++j) {
      inverse_[j] = 1 / preconditioner[j];
      null_[j] = root[j];
      weight_[j] = diagonal_[j] * root[j];
    }
    const double norm = std::max(dot(null_, weight_, length_), std::numeric_limits<double>::min());
    const bool exact = !(task_.along[index] > 0);
    rate_ = exact ? 1 / norm : 0.0;
    residual_.assign(task_.rhs + index * m_, m_, 0.0);
    precondition();
    first_ = size_;
    rate_ = exact || task_.start[index] != 0 ? 1 / norm : 0.0;
    start(task_.start[index]);
    for (int64_t j = 0; j < length_; ++j) p_[j] = z_[j];
    running_ = size_ > task_.tol * task_.tol * first_;
    steps_ = 0;
  }

  // One step; true when the answer is written.
  bool step() {
    if (running_ && steps_ < task_.max_iter) {
      ++steps_;
      const double curvature = multiply();
      const bool convex = curvature > 0;
      const double length = convex ? size_ / curvature : 0.0, before = size_;
      for (int64_t j = 0; j < m_; ++j) {
        x_[j] += length * p_[j];
        residual_[j] -= length * product_[j];
      }
      double* const through = task_.through + index_ * job_.n;
      for (int64_t i = 0; i < job_.n; ++i) through[i] += length * scale_ * through_[i];
      precondition();
      const double momentum = size_ / before;
      for (int64_t j = 0; j < m_; ++j) p_[j] = z_[j] + momentum * p_[j];
      running_ = convex && size_ > task_.tol * task_.tol * first_;
      if (running_ && steps_ < task_.max_iter) return false;
    }
    for (int64_t j = 0; j < m_; ++j) task_.answer[index_ * m_ + j] = x_[j];
    task_.residual[index_] = std::sqrt(first_ > 0 ? size_ / first_ : size_);
    index_ = -1;
    return true;
  }

 private:
  // From the root times `length`: the system's product with it is known.
  void start(double length) {
    const double rate = length * task_.along[index_];
    for (int64_t j = 0; j < m_; ++j) {
      x_[j] = length * null_[j];
      residual_[j] -= rate * weight_[j];
    }
    const double* image = task_.image + index_ * job_.n;
    for (int64_t i = 0; i < job_.n; ++i) task_.through[index_ * job_.n + i] = length * image[i];
    precondition();
  }

  // The residual, z, and the square of its norm; without the root's part where the start has taken that away, or where
  // nothing can (both marginals exact).
  void precondition() {
    remove(rate_, null_, residual_, weight_);
    for (int64_t j = 0; j < m_; ++j) z_[j] = inverse_[j] * residual_[j];
    remove(rate_, weight_, z_, null_);
    size_ = dot(residual_, z_, length_);
  }

  // From a vector, `rate` <along, vector> times another.
  void remove(double rate, const Array& along, Array& vector, const Array& other) {
    if (rate == 0) return;
    const double part = rate * dot(along, vector, length_);
    for (int64_t j = 0; j < m_; ++j) vector[j] -= part * other[j];
  }

  // (column diagonal - N' N / row diagonal) p, and <p, that>; through_ is N p over scale_.
  double multiply() {
    double largest = 0;  // so that the type of the cost can hold the operand
    for (int64_t j = 0; j < m_; ++j) largest = std::max(largest, std::fabs(p_[j]));
    scale_ = largest > 0 ? largest : 1.0;
    for (int64_t j = 0; j < m_; ++j) operand_[j] = p_[j] / scale_;
    product_.fill(0.0);
    run_phases(job_, pass_, threads_);
    for (int64_t j = 0; j < m_; ++j) product_[j] = diagonal_[j] * p_[j] - scale_ * product_[j];
    return dot(p_, product_, length_);
  }

  const AdjointTask& task_;
  const int64_t m_, length_;
  const int threads_;
  Job job_;
  PhaseList setup_{}, pass_{};
  Scratch scratch_;
  Arena arena_;
  Array inverse_, null_, weight_, x_, residual_, z_, p_, operand_, product_, through_;
  const double* diagonal_ = nullptr;
  int64_t index_ = -1, steps_ = 0;
  double rate_ = 0, size_ = 0, first_ = 0, scale_ = 1;
  bool running_ = false;
};

}  // namespace

class ConjugateGradients::Slots : public Batch<System> {
 public:
  using Batch<System>::Batch;
};

ConjugateGradients::ConjugateGradients(const AdjointTask& task, int threads) : task_(task) {
  const int64_t count = task.cost.count;
  const Sharing sharing(count, task.cost.n * task.cost.m, threads);
  batch_.reset(new Slots(count, sharing));
  for (int64_t k = 0; k < sharing.slots(count); ++k)
    batch_->slots().emplace_back(new System(task_, sharing.of_problem()));
}

ConjugateGradients::~ConjugateGradients() = default;

bool ConjugateGradients::advance(double seconds) {
  return batch_->advance(seconds, [](const System&) { return false; });
}

}  // namespace uot
