// Python's view of the resident CUDA kernel; everything is checked in uotlib/backends/cuda.py, the only caller.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/resident_launch.h"
#include "solve_bindings.h"

namespace py = pybind11;
namespace resident = uot::resident;

namespace {

using Address = std::uintptr_t;
// The cost: address, strides of its batch and of a row, items, problems, rows and columns.
using CostArguments = std::tuple<Address, std::int64_t, std::int64_t, Address, std::int64_t, int, int>;
using SideArguments = std::tuple<Address, Address>;  // masses and tau

template <class T> T* array(Address at) { return reinterpret_cast<T*>(at); }

uot::SideArrays side(const SideArguments& from) {
  return {array<const double>(std::get<0>(from)), array<const double>(std::get<1>(from))};
}

resident::Request make(const CostArguments& cost, const SideArguments& rows, const SideArguments& cols, Address reg,
                       Address start, Address out, bool entropy, bool textbook, std::int64_t max_iter, double tol,
                       bool synchronous, const py::dict& options) {
  resident::Request request{};
  Address data, items;
  std::tie(data, request.batch_stride, request.row_stride, items, request.count, request.n, request.m) = cost;
  request.cost = array<const float>(data);
  request.items = array<const std::int64_t>(items);
  request.entropy = entropy;
  request.rows = side(rows);
  request.cols = side(cols);
  request.reg = array<const double>(reg);
  request.start = array<const double>(start);
  request.out = array<double>(out);
  request.set = settings_of(textbook, max_iter, tol, synchronous, options);
  return request;
}

const char* name_of(resident::Way way) {
  switch (way) {
    case resident::Way::kAhead: return "ahead";
    case resident::Way::kRing: return "ring";
    case resident::Way::kPanels: return "panels";
  }
  return "";
}

void succeed(const std::string& error) {
  if (!error.empty()) throw std::runtime_error("the cuda backend failed at " + error);
}

}  // namespace

void bind_resident(py::module_& module) {
  module.attr("RESIDENT_COLUMNS") = resident::kMaxColumns;
  module.attr("RESIDENT_DEPTH") = resident::kMaxDepth;
  module.attr("RESIDENT_ORDER") = resident::kMaxOrder;
  module.def("resident_why_not", &resident::why_not, "Why a CUDA device cannot run the kernel, or nothing.");
  py::class_<resident::Request>(module, "Resident")
      .def(py::init(&make))
      .def("division",
           [](const resident::Request& request, int device) {
             resident::Division found{};
             succeed(resident::division(request, device, &found));
             py::dict shown;
             shown["groups"] = found.groups;
             shown["blocks"] = found.blocks;
             shown["cluster"] = found.cluster;
             shown["rows"] = found.cut.block_rows;
             shown["resident_rows"] = found.cut.resident_rows;
             shown["others"] = name_of(found.way);
             shown["stages"] = found.cut.stages;
             shown["bulk"] = found.bulk;
             return shown;
           },
           "How a launch is divided on a device, see uotlib.backends.cuda.CudaBackend.division.")
      .def("workspace",
           [](const resident::Request& request, int device) {
             std::int64_t bytes = 0;
             succeed(resident::workspace(request, device, &bytes));
             return bytes;
           },
           "Bytes of device memory that a launch needs.")
      .def("launch",
           [](const resident::Request& request, int device, Address stream, Address memory) {
             bool refused = false;
             succeed(resident::launch(request, device, stream, array<char>(memory), &refused));
             return refused;
           },
           "Solves on a stream, without waiting.  Whether the device has just refused clusters that it had promised.");
}
