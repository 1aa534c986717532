// The kernel's own code on a processor, as a library for tests/test_cuda_host.py.
#include "host_grid.h"
#include "plan.h"

using namespace uot::resident;

namespace {

template <int C> void run(HostGrid& grid, const Task& task, bool wide) {
  if (wide) solve_all<C, true>(grid, task);
  else solve_all<C, false>(grid, task);
}

}  // namespace

// options: the numbers of uotlib.SolverOptions in the order of uot::Settings.  Returns the phases, -1 where blocks
// disagreed.
extern "C" int64_t resident_solve(const float* cost, int64_t batch_stride, int64_t row_stride, const int64_t* items,
                                  int64_t count, int64_t n, int64_t m, const double* mass_a, const double* tau_a,
                                  const double* mass_b, const double* tau_b, const double* reg, const double* start,
                                  double* out, int entropy, int textbook, int64_t max_iter, double tol, int synchronous,
                                  const double* options, int64_t blocks, int64_t room, uint64_t seed) {
  uot::Settings set{};
  set.textbook = textbook != 0;
  set.synchronous = synchronous != 0;
  set.max_iter = max_iter;
  set.tol = tol;
  set.annealing = {options[0], options[1], options[2], options[3], int64_t(options[4]), int64_t(options[5])};
  set.anderson_depth = int64_t(options[6]);
  set.anderson_start = int64_t(options[7]);
  set.safeguard = options[8];
  set.backtrack = options[9];
  set.trust_region = options[10];
  set.check_every = int64_t(options[11]);
  const Request request{cost, batch_stride, row_stride, items, count, int(n), int(m), entropy != 0, {mass_a, tau_a},
                        {mass_b, tau_b}, reg, start, out, set};
  int64_t bytes = 0;
  plan(request, int(blocks), room, nullptr, &bytes);
  std::vector<char> memory(size_t(bytes), char(0xff));
  HostGrid grid(int(blocks), room, seed);
  const Task task = plan(request, int(blocks), room, memory.data(), &bytes);
  switch (chunks_of(int(m))) {
    case 1: run<1>(grid, task, wide(request)); break;
    case 2: run<2>(grid, task, wide(request)); break;
    default: run<4>(grid, task, wide(request));
  }
  return grid.agree() ? grid.phases() : -1;
}
