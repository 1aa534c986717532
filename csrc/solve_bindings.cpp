// Python's view of a whole solve; addresses and sizes are checked in uotlib/backends/native_solve.py, the only caller.
#include "solve_bindings.h"

#include <memory>

#include "cpu/solve.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <class T> T* array(const py::dict& from, const char* name) {
  return reinterpret_cast<T*>(from[name].cast<Address>());
}

uot::SideArrays side(const py::dict& from) {
  return {array<const double>(from, "mass"), array<const double>(from, "tau")};
}

std::unique_ptr<uot::Solve> make(const py::dict& cost, const py::dict& rows, const py::dict& cols,
                                 const py::dict& problem, const py::dict& settings, const py::dict& out, int threads) {
  const auto integer = [](const py::dict& from, const char* name) { return from[name].cast<std::int64_t>(); };
  const auto number = [](const py::dict& from, const char* name) { return from[name].cast<double>(); };
  const auto flag = [](const py::dict& from, const char* name) { return from[name].cast<bool>(); };

  uot::Task task{};
  task.cost.cost = array<const void>(cost, "data");
  task.cost.batch_stride = integer(cost, "batch_stride");
  task.cost.row_stride = integer(cost, "row_stride");
  task.cost.items = array<const std::int64_t>(cost, "items");
  task.cost.count = integer(cost, "count");
  task.cost.n = integer(cost, "n");
  task.cost.m = integer(cost, "m");
  task.is_double = flag(cost, "is_double");
  task.entropy = flag(problem, "entropy");
  task.rows = side(rows);
  task.cols = side(cols);
  task.reg = array<const double>(problem, "reg");
  task.start = array<const double>(problem, "start");
  task.out = {array<double>(out, "f"), array<double>(out, "g"), array<double>(out, "log_u"), array<double>(out, "log_v"),
              array<double>(out, "row_lse"), array<double>(out, "col_lse"), array<double>(out, "violation"),
              array<double>(out, "gap"), array<std::int64_t>(out, "n_iter"), array<bool>(out, "converged"),
              array<bool>(out, "at_floor")};

  uot::Settings set{};
  set.textbook = flag(settings, "textbook");
  set.synchronous = flag(settings, "synchronous");
  set.lockstep = flag(settings, "lockstep");
  set.max_iter = integer(settings, "max_iter");
  set.tol = number(settings, "tol");
  set.annealing = {number(settings, "anneal_start"), number(settings, "anneal_factor"),
                   number(settings, "anneal_violation"), number(settings, "anneal_accuracy"),
                   integer(settings, "anneal_order"), integer(settings, "anneal_passes")};
  set.anderson_depth = integer(settings, "anderson_depth");
  set.anderson_start = integer(settings, "anderson_start");
  set.safeguard = number(settings, "safeguard");
  set.backtrack = number(settings, "backtrack");
  set.trust_region = number(settings, "trust_region");
  set.check_every = integer(settings, "check_every");
  return std::make_unique<uot::Solve>(task, set, threads);
}

}  // namespace

void bind_solve(py::module_& module) {
  module.attr("MAX_HISTORY") = uot::kMaxHistory;
  py::class_<uot::Solve>(module, "Solve")
      .def(py::init(&make))
      .def("advance", &uot::Solve::advance, py::call_guard<py::gil_scoped_release>(),
           "Goes on for about so many seconds, in lockstep no further than to the next check; True when all are solved.")
      .def("status", [](const uot::Solve& solve) {
        const uot::Status status = solve.status();
        return py::make_tuple(status.passes, status.eps, status.violation, status.running);
      });
}
