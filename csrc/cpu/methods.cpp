// The two methods of uotlib/solver.py, one problem at a time, and what is written down at the end.
#include <cmath>
#include <limits>

#include "slot.h"

namespace uot {
namespace {

// x log y, 0 for x = 0
double x_log_y(double x, double y) { return x == 0 && !std::isnan(y) ? 0.0 : x * std::log(y); }

// One term of KL(p|q), never negative: near p = q, where the closed form cancels, its series in d = (p - q) / q.
double kl_term(double p, double q) {
  const double d = q > 0 ? (p - q) / q : 1.0;
  if (std::fabs(d) < 1e-2)
    return q * d * d * (1.0 / 2 - d * (1.0 / 6 - d * (1.0 / 12 - d * (1.0 / 20 - d * (1.0 / 30 - d / 42)))));
  return x_log_y(p, p) - x_log_y(p, q) - p + q;
}

}  // namespace

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
    if (rows_.exact && vectors_.has_minus_inf(row_lse_, rows_length_)) {
      scale_rows(row_lse_, log_u_);
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
  vectors_.offset(answer_, -optimal_shift(), moved_, cols_length_);
  for (int64_t j = 0; j < cols_length_; ++j)
    if (live_[j] == -kInfinity) moved_[j] = j < m_ ? g_[j] : 0.0;  // a column that takes no part stays where it is

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
  if (better)
    for (int64_t j = 0; j < cols_length_; ++j) best_answer_[j] = moved_[j];
  if (leaving) {
    annealing_.descend(solved, moved_, rejected ? col_work_ : next_);
    best_ = record_ = kInfinity;
  }
  if (rejected || leaving) anderson_.restart();

  const bool final = passes_ == settings_.max_iter - 1;
  confirming_ = one_sided() && (close || (annealing_.at_target() && final));
  g_.swap(confirming_ ? answer_ : next_);
  set_eps(annealing_.eps());
}

// Writes down the answers of the problem: completes the potentials of columns that took no part, and certifies.
void Slot::finish(const PairView& pair, int64_t n_iter, bool at_floor) {
  const Answers& out = task_.out;
  const int64_t row = index_ * n_, col = index_ * m_;
  bool idle = false;
  scale_rows(pair.update, log_u_);
  for (int64_t j = 0; j < m_; ++j) {
    mask_[j] = pair.log_v[j] == -kInfinity;
    idle = idle || mask_[j];
    out.g[col + j] = pair.g[j];
    out.log_v[col + j] = pair.log_v[j];
    out.col_lse[col + j] = pair.col_lse[j];
  }
  for (int64_t i = 0; i < n_; ++i) {
    out.f[row + i] = pair.f[i];
    out.log_u[row + i] = log_u_[i];
    out.row_lse[row + i] = pair.row_lse[i];
  }
  if (idle) {
    masked_col_lse(log_u_, next_);
    const double step = eps_ * damping_cols_;
    for (int64_t j = 0; j < m_; ++j) {
      if (!mask_[j]) continue;
      const double rest = task_.entropy ? cols_.log_mass[j] : 0.0;
      out.col_lse[col + j] = next_[j];
      out.g[col + j] = rest == -kInfinity ? -kInfinity : step * (rest - next_[j]);
    }
  }
  out.violation[index_] = violation_;
  out.n_iter[index_] = n_iter;
  const double *f = out.f + row, *g = out.g + col;
  out.gap[index_] = std::isnan(violation_) ? violation_
      : side_gap(rows_, out.log_u + row, out.row_lse + row, f, n_) +
        side_gap(cols_, out.log_v + col, out.col_lse + col, g, m_);
  double most = 0;
  for (int64_t i = 0; i < n_; ++i) most = std::isfinite(f[i]) ? std::fmax(most, std::fabs(f[i])) : most;
  for (int64_t j = 0; j < m_; ++j) most = std::isfinite(g[j]) ? std::fmax(most, std::fabs(g[j])) : most;
  out.converged[index_] = violation_ <= tolerance(most);
  out.at_floor[index_] = at_floor && !out.converged[index_];
  index_ = -1;
}

// This side's part of primal minus dual (uotlib.divergences.KLPenalty.gap).
double Slot::side_gap(const SideState& side, const double* log_scaling, const double* lse, const double* potential,
                      int64_t points) const {
  double total = 0;
  for (int64_t i = 0; i < points; ++i) {
    const double marginal = std::exp(log_scaling[i] + lse[i]);
    const double scaled = std::fmax(-kHuge, std::fmin(kHuge, potential[i])) * side.rate;
    const double target = side.mass[i] == 0 ? 0.0 : side.mass[i] * std::exp(-scaled);
    total += side.exact ? std::fabs(marginal - target) : kl_term(marginal, target);
  }
  return side.exact ? total : side.tau * total;
}

}  // namespace uot
