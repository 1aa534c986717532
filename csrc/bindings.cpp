// Python's view of the kernels.  Arrays come as addresses, so no version of torch is compiled in: shapes, types, devices
// and the entries of items are checked in uotlib/backends/native.py, the only caller.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>

#include "cpu/conjugate.h"
#include "cpu/flush.h"
#include "cpu/operations.h"
#include "cpu/pages.h"
#include "cuda/device.h"
#include "solve_bindings.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Strided = std::tuple<Address, std::int64_t, std::int64_t>;  // strides of the batch and of the rows, in entries

const double* vector(Address address) { return reinterpret_cast<const double*>(address); }
double* result(Address address) { return reinterpret_cast<double*>(address); }

struct Cost {
  Address data;
  bool is_double;
  std::int64_t batch_stride, row_stride, count, n, m;
  Address items, reg;
  int threads;

  uot::Job job() const {
    uot::Job job{};
    job.cost = reinterpret_cast<const void*>(data);
    job.batch_stride = batch_stride;
    job.row_stride = row_stride;
    job.items = reinterpret_cast<const std::int64_t*>(items);
    job.count = count;
    job.n = n;
    job.m = m;
    job.reg = vector(reg);
    return job;
  }
};

void run(uot::Operation operation, const Cost& cost, const uot::Job& job) {
  py::gil_scoped_release release;
  uot::run_operation(operation, job, cost.is_double, cost.threads);
}

void row_lse(const Cost& cost, Address log_v, Address lse) {
  uot::Job job = cost.job();
  job.log_v = vector(log_v);
  job.row_out = reinterpret_cast<double*>(lse);
  run(uot::Operation::kRowLse, cost, job);
}

void col_lse(const Cost& cost, Address log_u, Address lse) {
  uot::Job job = cost.job();
  job.log_u = vector(log_u);
  job.col_out = reinterpret_cast<double*>(lse);
  run(uot::Operation::kColLse, cost, job);
}

void col_lse_masked(const Cost& cost, Address log_u, Address mask, Address lse) {
  uot::Job job = cost.job();
  job.log_u = vector(log_u);
  job.mask = reinterpret_cast<const bool*>(mask);
  job.col_out = reinterpret_cast<double*>(lse);
  run(uot::Operation::kColLseMasked, cost, job);
}

void sweep(const Cost& cost, Address log_v, Address offset, Address damping, Address shift, Address col_mass,
           Address lse, Address row_hint, Address col_hint, Address block_min, Address missed) {
  uot::Job job = cost.job();
  job.log_v = vector(log_v);
  job.offset = vector(offset);
  job.damping = vector(damping);
  job.shift = vector(shift);
  job.col_out = reinterpret_cast<double*>(col_mass);
  job.row_out = reinterpret_cast<double*>(lse);
  job.row_hint = vector(row_hint);
  job.col_hint = vector(col_hint);
  job.block_min = reinterpret_cast<const void*>(block_min);
  job.missed = reinterpret_cast<double*>(missed);
  run(uot::Operation::kSweep, cost, job);
}

void block_min(const Cost& cost, Address table) {
  uot::Job job = cost.job();
  job.block_min_out = reinterpret_cast<void*>(table);
  run(uot::Operation::kBlockMin, cost, job);
}

void panel(const Cost& cost, Address log_u, Address log_v, Address plan) {
  uot::Job job = cost.job();
  job.log_u = vector(log_u);
  job.log_v = vector(log_v);
  job.plan = reinterpret_cast<void*>(plan);
  run(uot::Operation::kPanel, cost, job);
}

// W, its sums and its products; `columns`: W' times the factor and nothing else.
void weigh(const Cost& cost, Address log_u, Address log_v, Address left, Address right, std::int64_t rank,
           Address row_sum, Address col_sum, Address out, std::int64_t batch_stride, std::int64_t row_stride, bool add,
           Address scale, Strided factor, Strided product, std::int64_t factor_columns, bool columns) {
  uot::Job job = cost.job();
  job.log_u = vector(log_u);
  job.log_v = vector(log_v);
  job.left = reinterpret_cast<const void*>(left);
  job.right = reinterpret_cast<const void*>(right);
  job.rank = rank;
  job.row_out = result(row_sum);
  job.col_out = result(col_sum);
  job.plan = reinterpret_cast<void*>(out);
  job.plan_batch_stride = batch_stride;
  job.plan_row_stride = row_stride;
  job.plan_added = add && job.plan;
  job.plan_scale = vector(scale);
  job.factor = reinterpret_cast<const void*>(std::get<0>(factor));
  job.product = reinterpret_cast<void*>(std::get<0>(product));
  job.factor_columns = factor_columns;
  std::tie(std::ignore, job.factor_batch_stride, job.factor_row_stride) = factor;
  std::tie(std::ignore, job.product_batch_stride, job.product_row_stride) = product;
  run(columns ? uot::Operation::kWeighColumns : uot::Operation::kWeigh, cost, job);
}

// left right, the latter in panels, to where the cost is to be.
void product(const Cost& cost, Address left, Address right, std::int64_t rank) {
  uot::Job job = cost.job();
  job.left = reinterpret_cast<const void*>(left);
  job.right = reinterpret_cast<const void*>(right);
  job.rank = rank;
  job.plan = reinterpret_cast<void*>(cost.data);
  job.plan_batch_stride = cost.batch_stride;
  job.plan_row_stride = cost.row_stride;
  run(uot::Operation::kProduct, cost, job);
}

// That part of an adjoint's job which its passes share.
uot::Job adjoint_job(const Cost& cost, Address log_x, Address log_y) {
  uot::Job job = cost.job();
  job.log_u = vector(log_x);
  job.log_v = vector(log_y);
  return job;
}

void schur(const Cost& cost, Address log_x, Address log_y, Address row_diagonal, Address operand, Address total) {
  uot::Job job = adjoint_job(cost, log_x, log_y);
  job.row_diagonal = vector(row_diagonal);
  job.operand = vector(operand);
  job.col_out = result(total);
  run(uot::Operation::kSchur, cost, job);
}

void eliminate(const Cost& cost, Address log_x, Address log_y, Address row_root, Address col_root, Address row_side,
               Address row_ratio, Address row_diagonal, Address sums, Address empty) {
  uot::Job job = adjoint_job(cost, log_x, log_y);
  job.row_root = vector(row_root);
  job.operand = vector(col_root);
  job.row_side = vector(row_side);
  job.row_ratio = vector(row_ratio);
  job.row_out = result(row_diagonal);
  job.col_out = result(sums);
  job.empty_out = reinterpret_cast<std::uint8_t*>(empty);
  run(uot::Operation::kEliminate, cost, job);
}

std::unique_ptr<uot::ConjugateGradients> conjugate_gradients(
    const Cost& cost, Address log_x, Address log_y, Address row_diagonal, Address empty, Address col_diagonal,
    Address preconditioner, Address root, Address rhs, Address along, Address image, Address start, double tol,
    std::int64_t max_iter, Address answer, Address residual, Address through) {
  uot::AdjointTask task{};
  task.cost = adjoint_job(cost, log_x, log_y);
  task.cost.row_diagonal = vector(row_diagonal);
  task.cost.empty = reinterpret_cast<const std::uint8_t*>(empty);
  task.is_double = cost.is_double;
  task.col_diagonal = vector(col_diagonal);
  task.preconditioner = vector(preconditioner);
  task.root = vector(root);
  task.rhs = vector(rhs);
  task.along = vector(along);
  task.image = vector(image);
  task.start = vector(start);
  task.tol = tol;
  task.max_iter = max_iter;
  task.answer = result(answer);
  task.residual = result(residual);
  task.through = result(through);
  return std::make_unique<uot::ConjugateGradients>(task, cost.threads);
}

void large_pages(Address begin, std::size_t bytes) {
  uot::prefer_large_pages(reinterpret_cast<void*>(begin), bytes);
}

void exp2_array(bool is_double, Address in, Address out, std::int64_t count) {
  const uot::FlushDenormals flush;
  uot::kernels(is_double).exp2(reinterpret_cast<const void*>(in), reinterpret_cast<void*>(out), count);
}

void exp_array(Address in, Address out, std::int64_t count) {
  uot::kernels(true).exp(vector(in), reinterpret_cast<double*>(out), count);
}

void log_array(Address in, Address out, std::int64_t count) {
  uot::kernels(true).log(vector(in), reinterpret_cast<double*>(out), count);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of uotlib; see uotlib.backends.native.";
  module.attr("compiler") = UOT_COMPILER;
  module.attr("cuda_archs") = UOT_CUDA_ARCHS;
  module.def("simd_level", &uot::simd_level);
  module.def("cuda_device", &uot::cuda_device_report);

  py::class_<Cost>(module, "Cost")
      .def(py::init([](Address data, bool is_double, std::int64_t batch_stride, std::int64_t row_stride,
                       std::int64_t count, std::int64_t n, std::int64_t m, Address items, Address reg, int threads) {
        return Cost{data, is_double, batch_stride, row_stride, count, n, m, items, reg, threads};
      }));
  bind_solve(module);
  bind_resident(module);
  module.def("row_lse", &row_lse);
  module.def("col_lse", &col_lse);
  module.def("col_lse_masked", &col_lse_masked);
  module.def("sweep", &sweep);
  module.def("panel", &panel);
  module.def("block_min", &block_min);
  module.def("weigh", &weigh);
  module.def("product", &product);
  module.def("schur", &schur);
  module.def("eliminate", &eliminate);
  py::class_<uot::ConjugateGradients>(module, "ConjugateGradients")
      .def(py::init(&conjugate_gradients))
      .def("advance", &uot::ConjugateGradients::advance, py::call_guard<py::gil_scoped_release>(),
           "Goes on for about so many seconds; True when all are solved.");
  module.attr("panel_columns") = uot::kPanelColumns;
  module.def("block_rows", &uot::block_rows);
  module.def("block_columns", &uot::block_columns);
  module.def("exp", &exp_array, "e^x of float64, for its test");
  module.def("log", &log_array, "Natural logarithm of float64, for its test");
  module.def("exp2", &exp2_array, "2^x by the kernels' polynomial, for its test");
  module.def("prefer_large_pages", &large_pages, "asks for pages of 2 MiB under fresh memory, where enough are free");
  module.def("free_large_pages", &uot::free_large_pages, "free blocks of 2 MiB by a /proc/buddyinfo, for its test");
}
