// The operations of a backend, on arrays in memory.
#pragma once

#include "job.h"
#include "pool.h"
#include "vectors.h"

namespace uot {

// kColLseMasked is kColLse for the columns of `mask` alone; kBlockMin fills the table that a sweep skips by.  kSchur
// and kEliminate are the adjoint's: their first kAdjointSetup phases are for the log-scalings alone.  kProduct reads no
// cost: it makes one, of features.
enum class Operation {
  kRowLse, kColLse, kSweep, kPanel, kBlockMin, kColLseMasked, kSchur, kEliminate, kWeigh, kWeighColumns, kProduct
};
constexpr int kAdjointSetup = 2;

// A call is laid out once and may be run many times: the caller's arrays may be others, of the same shapes and null
// where they were null.  (The hints alone may come and go.)  Nothing here allocates but run_operation.

// Fills in the job's cut, which depends on its shape alone, and where its scratch lies in `memory`, of alignment
// kAlignment; with null, only measures.  Returns the bytes of scratch for that many workers.
int64_t lay_out(Job& job, Operation operation, bool is_double, int workers, void* memory);

// What is to be run, of a job that is laid out.  Throws std::invalid_argument where UOTLIB_SIMD asks for what the
// machine has not.
PhaseList phases_of(const Job& job, Operation operation, bool is_double);

// The threads that a job is worth, at most `threads`.
int useful_threads(const Job& job, int threads);

// `job` has the caller's arrays; lays out, allocates and runs.  Throws std::bad_alloc beside the above.
void run_operation(Operation operation, Job job, bool is_double, int threads);

// The instruction set that runs here: "baseline", "avx2" or "avx512".
const char* simd_level();

const Kernels& kernels(bool is_double);
const Vectors& vectors();

}  // namespace uot
