// The two methods of uotlib/solver.py, one problem at a time, and what is written down at the end.
#include <algorithm>
#include <cmath>
#include <limits>

#include "slot.h"

namespace uot {
bool Slot::step() { return settings_.textbook ? step_textbook() : step_accelerated(); }

// Alternating half-steps at the target eps, as POT takes them: the pair (f_k, g_k), whose rows are known only after the
// next pass, so that k iterations take k + 1 passes.
bool Slot::step_textbook() {
  const int64_t iteration = passes_;
  sweep(iteration == 0 && task_.entropy);
  bool done = false, floor = false;
  if (iteration > 0) {
    const PairView now = pair(true);
    violation_ = judge(now);
    done = iteration >= settings_.max_iter;
    if (!done && settings_.synchronous && iteration % settings_.check_every == 0) {
      checked_ = true;
      floor = stalled(now.f, now.g, violation_);
      done = violation_ <= tolerance(largest(now.f, now.g)) || floor || std::isnan(violation_);
    }
    if (done) finish(now, iteration, floor);
  }
  if (!done) answer_.swap(g_);
  return done;
}

// A pass of the annealed, translated and accelerated iteration.
bool Slot::step_accelerated() {
  sweep(false);
  if (confirming_) {
    violation_ = judge(pair(true));
  } else {
    // Rows were updated last: only those which reach nothing can be wrong.
    violation_ = columns_.deviation == 0 ? 0.0 : columns_.deviation / columns_.mass;
    if (rows_.exact && swept_.lost) {
      vectors_.scaling(damping_rows_, row_lse_, offset_, log_u_, rows_length_);
      violation_ += side_violation(rows_, log_u_, row_lse_, f_, n_);
    }
    if (lost_) violation_ = std::numeric_limits<double>::quiet_NaN();
  }
  bool done = passes_ >= settings_.max_iter, floor = false, close = false;
  if (!done) {
    const bool at_target = annealing_.at_target();
    close = at_target && violation_ <= tolerance(settings_.tol > 0 ? 0.0 : largest(f_, shown_potential()));
    if (settings_.synchronous && passes_ % settings_.check_every == 0) {
      checked_ = true;
      const double* f = confirming_ ? f_before_ : f_;
      const bool still = stalled(f, shown_potential(), violation_);
      floor = at_target && still;
      // Where only the columns' marginal is exact, their update must come last, which another pass confirms.
      done = (close && (confirming_ || !one_sided())) || floor || std::isnan(violation_);
    }
  }
  if (done) finish(pair(confirming_), passes_, floor);
  else advance(violation_, close);
  return done;
}

// The next g and eps.
void Slot::advance(double violation, bool close) {
  // A column that takes no part stays where it is.
  vectors_.moved(answer_, -optimal_shift(), live_, g_, moved_, cols_length_);

  const bool rejected = violation > settings_.safeguard * best_, better = violation < best_;
  best_ = rejected ? kInfinity : better ? violation : best_;
  bool solved = false;
  const bool leaving = annealing_.level_done(violation, passes_, &solved);
  if (rejected || annealing_.level_pass() <= settings_.anderson_start) anderson_.restart();
  if (rejected) {  // back towards the best point so far
    for (int64_t j = 0; j < cols_length_; ++j)
      next_[j] = best_answer_[j] + settings_.backtrack * (g_[j] - best_answer_[j]);
  } else if (!leaving) {
    anderson_.extrapolate(g_, moved_, wanted_, settings_.trust_region * eps_, next_);
  }
  if (leaving) {
    annealing_.descend(solved, moved_, rejected ? col_work_ : next_);
    best_ = kInfinity;
    record_.forget();
  }
  if (better) best_answer_.swap(moved_);
  if (rejected || leaving) anderson_.restart();

  const bool final = passes_ == settings_.max_iter - 1;
  confirming_ = one_sided() && (close || (annealing_.at_target() && final));
  g_.swap(confirming_ ? answer_ : next_);
  set_eps(annealing_.eps());
}

// Writes down the answers of the problem: completes the potentials of columns that took no part, and certifies.
void Slot::finish(const PairView& pair, int64_t n_iter, bool at_floor) {
  const double *g = pair.g, *col_lse = pair.col_lse;
  vectors_.scaling(damping_rows_, pair.update, offset_, log_u_, rows_length_);
  bool idle = false;
  for (int64_t j = 0; j < m_; ++j) {
    mask_[j] = pair.log_v[j] == -kInfinity;
    idle = idle || mask_[j];
  }
  if (idle) {
    masked_col_lse(log_u_, next_);
    const double step = eps_ * damping_cols_;
    for (int64_t j = 0; j < m_; ++j) {
      const double rest = task_.entropy ? cols_.log_mass[j] : 0.0;
      moved_[j] = !mask_[j] ? g[j] : rest == -kInfinity ? -kInfinity : step * (rest - next_[j]);
      if (!mask_[j]) next_[j] = col_lse[j];
    }
    g = moved_;
    col_lse = next_;
  }

  const Answers& out = task_.out;
  const auto write = [&](const double* from, double* to, int64_t points) {
    std::copy_n(from, points, to + index_ * points);
  };
  write(pair.f, out.f, n_);
  write(log_u_, out.log_u, n_);
  write(pair.row_lse, out.row_lse, n_);
  write(g, out.g, m_);
  write(pair.log_v, out.log_v, m_);
  write(col_lse, out.col_lse, m_);
  out.violation[index_] = violation_;
  out.n_iter[index_] = double(n_iter);
  out.gap[index_] = std::isnan(violation_) ? violation_
      : side_gap(rows_, log_u_, pair.row_lse, pair.f, rows_length_) +
        side_gap(cols_, pair.log_v, col_lse, g, cols_length_);
  const bool converged = violation_ <= tolerance(largest(pair.f, g));
  out.converged[index_] = converged;
  out.at_floor[index_] = at_floor && !converged;
  index_ = -1;
}

// This side's part of primal minus dual (uotlib.divergences.KLPenalty.gap).
double Slot::side_gap(const SideState& side, const double* log_scaling, const double* lse, const double* potential,
                      int64_t length) const {
  const double gap = vectors_.gap({log_scaling, lse, side.mass, potential, side.rate, side.exact}, length);
  return side.exact ? gap : side.tau * gap;
}

}  // namespace uot
