// Python's view of a whole solve; addresses and sizes are checked in uotlib/backends/native_solve.py, the only caller.
#include "solve_bindings.h"

#include <memory>
#include <tuple>

#include "cpu/operations.h"
#include "cpu/solve.h"

namespace py = pybind11;

uot::Settings settings_of(bool textbook, std::int64_t max_iter, double tol, bool synchronous, const py::dict& options) {
  const auto integer = [&](const char* name) { return options[name].cast<std::int64_t>(); };
  const auto number = [&](const char* name) { return options[name].cast<double>(); };
  uot::Settings set{};
  set.textbook = textbook;
  set.synchronous = synchronous;
  set.max_iter = max_iter;
  set.tol = tol;
  set.annealing = {number("anneal_start"), number("anneal_factor"), number("anneal_violation"),
                   number("anneal_accuracy"), integer("anneal_order"), integer("anneal_passes")};
  set.anderson_depth = integer("anderson_depth");
  set.anderson_start = integer("anderson_start");
  set.safeguard = number("safeguard");
  set.backtrack = number("backtrack");
  set.trust_region = number("trust_region");
  set.check_every = integer("check_every");
  return set;
}

namespace {

using Address = std::uintptr_t;
// The cost: address, whether it is float64, strides of its batch and of a row, items, problems, rows and columns.
using CostArguments = std::tuple<Address, bool, std::int64_t, std::int64_t, Address, std::int64_t, std::int64_t,
                                 std::int64_t>;
using SideArguments = std::tuple<Address, Address>;  // masses and tau

template <class T> T* array(Address at) { return reinterpret_cast<T*>(at); }

uot::SideArrays side(const SideArguments& from) {
  return {array<const double>(std::get<0>(from)), array<const double>(std::get<1>(from))};
}

std::unique_ptr<uot::Solve> make(const CostArguments& cost, const SideArguments& rows, const SideArguments& cols,
                                 Address reg, Address start, Address out, bool entropy, bool textbook,
                                 std::int64_t max_iter, double tol, bool synchronous, bool lockstep,
                                 const py::dict& options, int threads) {
  uot::Task task{};
  Address data, items;
  std::tie(data, task.is_double, task.cost.batch_stride, task.cost.row_stride, items, task.cost.count, task.cost.n,
           task.cost.m) = cost;
  task.cost.cost = array<const void>(data);
  task.cost.items = array<const std::int64_t>(items);
  task.entropy = entropy;
  task.rows = side(rows);
  task.cols = side(cols);
  task.reg = array<const double>(reg);
  task.start = array<const double>(start);
  task.out = uot::answers_in(array<double>(out), task.cost.count, task.cost.n, task.cost.m);
  uot::Settings set = settings_of(textbook, max_iter, tol, synchronous, options);
  set.lockstep = lockstep;
  return std::make_unique<uot::Solve>(task, set, threads);
}

}  // namespace

void bind_solve(py::module_& module) {
  module.attr("MAX_HISTORY") = uot::kMaxHistory;
  module.def(
      "extremes",
      [](Address values, bool is_double, std::int64_t count) {
        const uot::Extremes found = uot::vectors().extremes(array<const void>(values), is_double, count, false);
        return py::make_tuple(found.low, found.high);
      },
      "Least and largest of float32 or float64 numbers, NaN where one is.");
  py::class_<uot::Solve>(module, "Solve")
      .def(py::init(&make))
      .def("advance", &uot::Solve::advance, py::call_guard<py::gil_scoped_release>(),
           "Goes on for about so many seconds, in lockstep no further than to the next check; True when all are.")
      .def("converged", &uot::Solve::converged, "Whether every problem is, when all are solved.")
      .def("status", [](const uot::Solve& solve) {
        const uot::Status status = solve.status();
        return py::make_tuple(status.passes, status.eps, status.violation, status.running);
      });
}
