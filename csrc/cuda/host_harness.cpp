// The kernel's own code on a processor, as a library for tests/test_cuda_host.py.
#include <thread>

#include "host_grid.h"
#include "plan.h"

using namespace uot::resident;

namespace {

Division division_of(const Request& request, const int64_t* chip, int64_t blocks) {
  Chip device{int(chip[0]), chip[1], chip[2], chip[3] != 0, {}};
  for (int size = 2; size <= kMaxCluster; ++size) device.clusters[size] = int(chip[4]) / size;
  return blocks > 0 ? divide(request, device, int(blocks), false) : best_division(request, device);
}

}  // namespace

// How a batch of costs without gaps is divided: groups, blocks of one, its Way, resident rows, stages, rows at
// a time, bytes of shared memory behind Shared, whether bulk copies fill the ring, and whether groups are
// clusters.
extern "C" void resident_division(int64_t count, int64_t n, int64_t m, const int64_t* chip, int64_t blocks,
                                  int64_t* out) {
  Request request{};
  request.batch_stride = n * m;
  request.row_stride = m;
  request.count = count;
  request.n = int(n);
  request.m = int(m);
  const Division found = division_of(request, chip, blocks);
  const Layout& cut = found.cut;
  const int64_t shown[] = {found.groups, found.blocks, int64_t(found.way), cut.resident_rows, cut.stages,
                           cut.together, cut.used(), found.bulk, found.cluster};
  std::copy(std::begin(shown), std::end(shown), out);
}

// options: the numbers of uotlib.SolverOptions in the order of uot::Settings.  chip: blocks at a time, bytes of shared
// memory for rows and of cache, whether it has bulk copies, and blocks that fit
// clusters; blocks: of a group, or 0 for the planner's choice.  Groups run on threads of their own,
// at the same time.  Returns the phases of all, -1 where blocks of a group disagreed, and below that what the ring was
// used wrongly for (Fault).
extern "C" int64_t resident_solve(const float* cost, int64_t batch_stride, int64_t row_stride, const int64_t* items,
                                  int64_t count, int64_t n, int64_t m, const double* mass_a, const double* tau_a,
                                  const double* mass_b, const double* tau_b, const double* reg, const double* start,
                                  double* out, int entropy, int textbook, int64_t max_iter, double tol, int synchronous,
                                  const double* options, const int64_t* chip, int64_t blocks, uint64_t seed) {
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
  const Division cut = division_of(request, chip, blocks);
  int64_t bytes = 0;
  plan(request, cut, nullptr, &bytes);
  std::vector<char> memory(size_t(bytes), char(0xff));
  const Task task = plan(request, cut, memory.data(), &bytes);
  std::atomic<int64_t> queue{cut.groups}, phases{0};
  std::atomic<bool> agreed{true};
  std::atomic<int> fault{0};
  std::vector<std::thread> threads;
  for (int group = 0; group < cut.groups; ++group)
    threads.emplace_back([&, group] {
      HostGrid grid(cut.blocks, cut.cut.used(), seed, group, queue);
      with_sweep(cut.way, cut.bulk, int(m), [&](auto sweep) { solve_all<decltype(sweep)>(grid, task); });
      phases += grid.phases();
      if (!grid.agree()) agreed = false;
      if (grid.fault() != kNone) fault = grid.fault();
    });
  for (std::thread& thread : threads) thread.join();
  if (fault != kNone) return -1 - fault;
  return agreed ? phases.load() : -1;
}
