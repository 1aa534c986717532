#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "task.h"

// The settings of a solve; options: the fields of uotlib.SolverOptions.
uot::Settings settings_of(bool textbook, std::int64_t max_iter, double tol, bool synchronous,
                          const pybind11::dict& options);

void bind_solve(pybind11::module_& module);
void bind_resident(pybind11::module_& module);
