// The four operations of a backend, on arrays in memory.
#pragma once

#include "job.h"

namespace uot {

enum class Operation { kRowLse, kColLse, kSweep, kPanel };

// `job` has the caller's arrays; the cut and the scratch are filled in here.  Throws std::bad_alloc, and
// std::invalid_argument where UOTLIB_SIMD asks for what the machine has not.
void run_operation(Operation operation, Job job, bool is_double, int threads);

// The instruction set that runs here: "baseline", "avx2" or "avx512".
const char* simd_level();

const Kernels& kernels(bool is_double);

}  // namespace uot
