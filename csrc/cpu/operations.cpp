#include "operations.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "scratch.h"

namespace uot {
namespace {

enum class Level { kBaseline, kAvx2, kAvx512 };
constexpr const char* kLevelNames[] = {"baseline", "avx2", "avx512"};

Level best_level() {
#if defined(UOT_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Level::kAvx512 : avx2 ? Level::kAvx2 : Level::kBaseline;
#else
  return Level::kBaseline;
#endif
}

// UOTLIB_SIMD names a lower level than the machine's best: to test it, or to compare results across machines.
Level chosen_level() {
  const Level best = best_level();
  const char* wish = std::getenv("UOTLIB_SIMD");
  if (!wish || !*wish) return best;
  for (int k = 0; k <= int(best); ++k)
    if (std::strcmp(wish, kLevelNames[k]) == 0) return Level(k);
  throw std::invalid_argument(std::string("UOTLIB_SIMD must be baseline, avx2 or avx512, and this machine's best is ") +
                              kLevelNames[int(best)] + ", got '" + wish + "'");
}

Level level() {
  static const Level chosen = chosen_level();
  return chosen;
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Hands out pieces of one allocation; without one, only counts them.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  int64_t used() const { return used_; }

  void* take(int64_t bytes) {
    void* place = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(bytes, int64_t(kAlignment));
    return place;
  }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace

const char* simd_level() { return kLevelNames[int(level())]; }

const Kernels& kernels(bool is_double) {
#if defined(UOT_X86)
  if (level() == Level::kAvx512) return avx512::kernels(is_double);
  if (level() == Level::kAvx2) return avx2::kernels(is_double);
#endif
  return baseline::kernels(is_double);
}

int64_t lay_out(Job& job, Operation operation, bool is_double, int workers, void* memory) {
  const Kernels& kernel = kernels(is_double);
  const int64_t size = is_double ? 8 : 4, line = int64_t(kAlignment) / size;
  const bool by_row = operation == Operation::kRowLse || operation == Operation::kSweep;
  const bool adjoint = operation == Operation::kSchur || operation == Operation::kEliminate;
  const bool running_peak = operation == Operation::kColLse || operation == Operation::kColLseMasked;

  // Where rows are long, few of them are work for all threads.
  const int64_t least = job.m < kLongRow ? kSlabRows : std::clamp(job.n / 16, kSlabRows / 4, kSlabRows);
  // The elimination keeps three sums a slab.
  const int64_t most = operation == Operation::kEliminate ? kMaxSlabs / 2 : kMaxSlabs;
  job.slabs = std::clamp(job.n / least, int64_t(1), most);
  job.slab_rows = round_up((job.n + job.slabs - 1) / job.slabs, kTileRows);
  job.slabs = job.n > 0 ? (job.n + job.slab_rows - 1) / job.slab_rows : 1;
  job.width = round_up(job.m, line);
  job.height = round_up(job.n, line);
  job.block_width = round_up(block_columns(job.m), line);
  const bool weigh = operation == Operation::kWeigh || operation == Operation::kWeighColumns;
  job.weights = operation != Operation::kPanel;
  job.coarse_exponents = weigh;
  const int64_t longest = job.width > kernel.block ? job.width : kernel.block;
  job.tile_bytes = size_t((weigh ? kBatchRows * kBatchColumns : kTileRows * longest + 4 * job.block_width) * size);

  Arena from(memory);
  if (job.log_v) {
    job.v_high = from.take(job.count * job.width * size);
    job.v_low = from.take(job.count * job.width * size);
  }
  if (job.log_u) {
    job.u_high = from.take(job.count * job.height * size);
    job.u_low = from.take(job.count * job.height * size);
  }
  if (adjoint || weigh) job.grid = static_cast<double*>(from.take(job.count * 8));
  if (adjoint) {
    job.operand_scaled = from.take(job.count * job.width * size);
    if (job.empty_out) job.extents = from.take(job.count * block_columns(job.m) * 16);
  }
  if (running_peak || adjoint || operation == Operation::kSweep || (operation == Operation::kWeigh && job.col_out)) {
    const int64_t sums = operation == Operation::kEliminate ? 3 : 1;
    job.slab_sum = from.take(job.count * job.slabs * sums * job.width * size);
    job.slab_peak = running_peak ? from.take(job.count * job.slabs * job.width * size) : nullptr;
    job.slab_unit = static_cast<double*>(from.take(job.count * job.slabs * 8));
  }
  if (operation == Operation::kSweep && job.block_min) {
    job.bound_high = from.take(job.count * job.block_width * size);
    job.bound_sum = from.take(job.count * job.block_width * size);
    job.slab_missed = from.take(job.count * job.slabs * job.block_width * size);
  }
  if (by_row || running_peak || adjoint || (weigh && (job.factor || product_of_factors(job))))
    job.tile = from.take(int64_t(job.tile_bytes) * (workers > 1 ? workers : 1));
  return from.used();
}

PhaseList phases_of(const Job& job, Operation operation, bool is_double) {
  const Kernels& kernel = kernels(is_double);
  const auto chunks = [&](int64_t length) { return job.count * ((length + kChunk - 1) / kChunk); };
  const Phase columns{kernel.split_columns, chunks(job.width)}, rows{kernel.split_rows, chunks(job.height)};
  const int64_t slabs = job.count * job.slabs;
  switch (operation) {
    case Operation::kRowLse: return {{columns, {kernel.row_lse, slabs}}, 2};
    case Operation::kColLse:
      return {{rows, {kernel.col_lse, slabs}, {kernel.merge_col_lse, chunks(job.width)}}, 3};
    case Operation::kSweep:
      return {{columns, {kernel.sweep, slabs}, {kernel.merge_sweep, chunks(job.width)}}, 3};
    case Operation::kPanel: return {{columns, rows, {kernel.panel, slabs}}, 3};
    case Operation::kBlockMin: return {{{kernel.block_min, slabs}}, 1};
    case Operation::kColLseMasked:
      return {{rows, {kernel.col_lse_masked, slabs}, {kernel.merge_col_lse_masked, chunks(job.width)}}, 3};
    case Operation::kProduct: {
      const int64_t stripes = (job.m + kBatchColumns - 1) / kBatchColumns;
      return {{{kernel.product, job.count * stripes * ((job.n + kBatchRows - 1) / kBatchRows)}}, 1};
    }
    case Operation::kWeighColumns:
      return {{{kernel.grid, job.count}, {kernel.split_both, columns.units + rows.units},
               {kernel.weigh_columns, job.count * ((job.m + kBatchColumns - 1) / kBatchColumns)}}, 3};
    case Operation::kWeigh:
      return {{{kernel.grid, job.count}, {kernel.split_both, columns.units + rows.units}, {kernel.weigh, slabs},
               {kernel.merge_weigh, columns.units}}, job.col_out ? 4 : 3};
    case Operation::kSchur:
    case Operation::kEliminate: {
      const bool schur = operation == Operation::kSchur;
      return {{{kernel.grid, job.count}, {kernel.split_both, columns.units + rows.units},
               {kernel.load_operand, columns.units}, {schur ? kernel.schur : kernel.eliminate, slabs},
               {schur ? kernel.merge_schur : kernel.merge_eliminate, columns.units}}, 5};
    }
  }
  return {};
}

int useful_threads(const Job& job, int threads) {
  // Waking a thread costs about what twenty thousand entries do.
  const int64_t useful = 1 + job.count * job.n * job.m / 20000;
  return threads > useful ? int(useful) : threads;
}

const Vectors& vectors() {
#if defined(UOT_X86)
  if (level() == Level::kAvx512) return avx512::vectors();
  if (level() == Level::kAvx2) return avx2::vectors();
#endif
  return baseline::vectors();
}

void run_operation(Operation operation, Job job, bool is_double, int threads) {
  if (job.count <= 0 || (job.n <= 0 && job.m <= 0)) return;
  threads = useful_threads(job, threads);
  const int64_t bytes = lay_out(job, operation, is_double, threads, nullptr);
  const Scratch memory = scratch(size_t(bytes));
  lay_out(job, operation, is_double, threads, memory.get());
  run_phases(job, phases_of(job, operation, is_double), threads);
}

}  // namespace uot
