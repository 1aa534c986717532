// One problem on its way: the state of its iteration, and one pass.
#pragma once

#include <memory>

#include "anderson.h"
#include "annealing.h"
#include "padded.h"
#include "operations.h"
#include "solve.h"

namespace uot {

// One side of the problem at hand.  Behind the last point: mass 0, log-mass -inf.
struct SideState {
  Array mass, log_mass;
  double tau, rate;  // rate = 1 / tau
  bool exact;
  double log_sum;    // log of the total mass

  SideState(Arena& arena, int64_t points) : mass(arena, points), log_mass(arena, points) {}
};

// Potentials and what belongs to them, as pointers into the slot: `update` are the row log-sum-exps that f comes from,
// `row_lse` those of g.
struct PairView {
  const double *f, *update, *g, *log_v, *row_lse, *col_lse;
};

class Slot {
 public:
  // `threads` is how many will run a pass.
  Slot(const Task& task, const Settings& settings, int threads);

  bool busy() const { return index_ >= 0; }
  // Whether the stop rule was looked at since `forget_check`.
  bool checked() const { return checked_; }
  void forget_check() { checked_ = false; }
  void begin(int64_t index);
  // One pass over the cost; true when the problem is solved and its answers are written.
  bool step();

  int64_t passes() const { return passes_; }
  double eps() const { return eps_; }
  double violation() const { return violation_; }

 private:
  bool step_accelerated();
  bool one_sided() const { return cols_.exact && !rows_.exact; }
  bool step_textbook();
  void advance(double violation, bool close);

  void sweep(bool everyone);
  void run(const Job& job, const PhaseList& phases) const;
  void set_eps(double eps);
  void hint();
  void expect_skipping();
  bool weak_columns();
  bool mark_missed();
  void drop_unreachable();
  void find_lost(const bool* lost_rows, const bool* lost_cols);
  double spread() const;
  double entry(int64_t i, int64_t j) const;
  // Columns of mask_, -inf elsewhere.
  void masked_col_lse(const double* log_u, double* lse);
  PairView pair(bool rows_before);
  const double* shown_potential();

  double judge(const PairView& pair);
  double side_violation(const SideState& side, const double* log_scaling, const double* lse, const double* potential,
                        int64_t points) const;
  double optimal_shift() const;
  double log_total(const double* mass, const double* log_mass, const double* potential, double rate,
                   int64_t length) const;
  double largest(const double* f, const double* g) const;
  double roundoff() const { return task_.is_double ? 0x1p-53 : 0x1p-24; }
  double tolerance(double largest) const;
  bool stalled(const double* f, const double* g, double violation);
  void finish(const PairView& pair, int64_t n_iter, bool at_floor);
  double side_gap(const SideState& side, const double* log_scaling, const double* lse, const double* potential,
                  int64_t length) const;
  const double* residual(const SideState& side) const { return task_.entropy ? side.log_mass.get() : nullptr; }

  const Task& task_;
  const Settings& settings_;
  Arena arena_;
  const Vectors& vectors_;
  const Kernels& kernels_;
  int threads_;
  int64_t n_, m_, rows_length_, cols_length_;  // lengths padded
  SideState rows_, cols_;
  Annealing annealing_;
  Anderson anderson_;

  int64_t index_ = -1, passes_ = 0;
  double reg_ = 0, eps_ = 0, damping_rows_ = 0, damping_cols_ = 0, shift_ = 0, scale_ = 0;
  double weak_below_ = 0, violation_ = 0, best_ = 0;
  Record record_{};
  bool checked_ = false, lost_ = false, confirming_ = false, hinted_ = false, all_reachable_ = true;
  RowsResult swept_{};
  ColumnsResult columns_{};

  Array offset_, f_, f_before_, log_u_, row_lse_, row_lse_before_, row_hint_, row_work_;
  // Columns that take part: reference, mass and log-mass, 0 or -inf for those that do not.
  Array live_, live_mass_, live_log_mass_;
  Array g_, g_shown_, log_v_, sum_, log_sum_, col_lse_, col_lse_before_, col_hint_, wanted_;
  Array answer_, moved_, best_answer_, next_, col_work_;
  std::unique_ptr<bool[]> mask_;
  Array table_, missed_;  // minima of blocks of the cost, in its type; what skipping may have left out
  double spread_ = 0;
  bool table_ready_ = false;
  int64_t next_look_ = 0;  // the pass from which blocks are looked up again

  Job job_, masked_;
  PhaseList phases_, masked_phases_;
  bool masked_ready_ = false;
};

}  // namespace uot
