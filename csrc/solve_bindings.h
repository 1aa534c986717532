#pragma once

#include <pybind11/pybind11.h>

void bind_solve(pybind11::module_& module);
