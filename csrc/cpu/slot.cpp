#include "slot.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace uot {
namespace {

constexpr int64_t kSampledRows = 32;   // rows of the cost that its spread is taken from
constexpr int64_t kSkipEntries = 1 << 17;  // costs smaller than this are swept as fast as their blocks are looked up
constexpr double kSkipBelow = 1.0 / 32;    // eps over the spread of the cost from which blocks may be negligible

// Bytes that a slot's vectors take, and more or less what a sweep needs beside them.
size_t expected_bytes(const Task& task, const Settings& settings) {
  constexpr int64_t kRowVectors = 11, kColumnVectors = 23, kTiles = 3;
  const int64_t history = settings.textbook ? 0 : 2 * settings.anderson_depth + settings.annealing.order + 3;
  const int64_t n = padded(task.cost.n), m = padded(task.cost.m);
  return sizeof(double) * size_t(kRowVectors * n + (kColumnVectors + history + kTiles * kTileRows) * m);
}

}  // namespace

Slot::Slot(const Task& task, const Settings& settings, int threads)
    : task_(task), settings_(settings), arena_(expected_bytes(task, settings)), vectors_(vectors()),
      kernels_(kernels(task.is_double)), threads_(threads), n_(task.cost.n), m_(task.cost.m),
      rows_length_(padded(n_)), cols_length_(padded(m_)), rows_(arena_, n_), cols_(arena_, m_),
      annealing_(arena_, vectors_, settings.annealing, settings.textbook ? 0 : m_, settings.max_iter),
      anderson_(arena_, vectors_, settings.textbook ? 0 : settings.anderson_depth, m_), mask_(new bool[size_t(m_)]()) {
  for (Array* array : {&offset_, &f_, &f_before_, &log_u_, &row_lse_, &row_lse_before_, &row_hint_, &row_work_})
    *array = Array(arena_, n_);
  for (Array* array : {&live_, &live_mass_, &live_log_mass_, &g_, &g_shown_, &log_v_, &sum_, &log_sum_, &col_lse_,
                       &col_lse_before_, &col_hint_, &wanted_, &answer_, &moved_, &best_answer_, &next_, &col_work_})
    *array = Array(arena_, m_);
  job_ = task.cost;
  job_.items = nullptr;
  job_.count = 1;
  job_.reg = &eps_;
  job_.damping = &damping_rows_;
  job_.shift = &shift_;
  job_.log_v = log_v_;
  job_.offset = offset_;
  if (n_ * m_ >= kSkipEntries) {
    table_ = Array(arena_, block_min_entries(n_, m_));
    missed_ = Array(arena_, block_columns(m_));
    job_.block_min = table_;
    job_.missed = missed_;
  }
  const int64_t scratch = lay_out(job_, Operation::kSweep, task.is_double, threads, nullptr);
  lay_out(job_, Operation::kSweep, task.is_double, threads, arena_.take(size_t(scratch)));
  phases_ = phases_of(job_, Operation::kSweep, task.is_double);
}

void Slot::begin(int64_t index) {
  const int64_t item = task_.cost.item(index);
  const char* data = static_cast<const char*>(task_.cost.cost);
  job_.cost = data + item * task_.cost.batch_stride * (task_.is_double ? 8 : 4);
  index_ = index;
  reg_ = task_.reg[index];

  const auto fill = [&](SideState& side, const SideArrays& from, int64_t points) {
    side.mass.assign(from.mass + index * points, points, 0.0);
    kernels_.log(side.mass, side.log_mass, padded(points));
    side.tau = from.tau[index];
    side.exact = std::isinf(side.tau);
    side.rate = 1 / side.tau;
    double total = 0;
    for (int64_t j = 0; j < points; ++j) total += side.mass[j];
    side.log_sum = std::log(total);
  };
  fill(rows_, task_.rows, n_);
  fill(cols_, task_.cols, m_);
  const double middle = 0.5 * (rows_.log_sum + cols_.log_sum);
  shift_ = std::isfinite(middle) ? middle : 0.0;
  scale_ = std::exp(shift_);

  std::copy_n(cols_.mass.get(), cols_length_, live_mass_.get());
  std::copy_n(cols_.log_mass.get(), cols_length_, live_log_mass_.get());
  for (int64_t j = 0; j < cols_length_; ++j)
    live_[j] = !(cols_.mass[j] > 0) ? -kInfinity : task_.entropy ? 0.0 : cols_.log_mass[j];
  if (task_.start) g_.assign(task_.start + index * m_, m_, 0.0);
  else g_.fill(0.0);
  passes_ = record_.pass = 0;
  lost_ = confirming_ = hinted_ = false;
  all_reachable_ = true;
  best_ = record_.least = kInfinity;
  std::copy_n(g_.get(), cols_length_, best_answer_.get());
  anderson_.restart();
  spread_ = spread();
  table_ready_ = false;
  if (!settings_.textbook) annealing_.begin(reg_, task_.start ? 0.0 : spread_);
  eps_ = 0;
  set_eps(settings_.textbook ? reg_ : annealing_.eps());
}

void Slot::set_eps(double eps) {
  if (eps == eps_) return;
  eps_ = eps;
  next_look_ = 0;
  damping_rows_ = 1 / (1 + eps * rows_.rate);
  damping_cols_ = 1 / (1 + eps * cols_.rate);
  // log u = offset - damping lse
  if (task_.entropy) vectors_.affine(damping_rows_, rows_.log_mass, nullptr, offset_, rows_length_);
  else vectors_.affine(1.0, rows_.log_mass, nullptr, offset_, rows_length_);
  hinted_ = false;
}

// What the sweep may expect: the last log-sum-exps, or after a change of eps those that the last potentials belong to.
void Slot::hint() {
  job_.row_hint = job_.col_hint = nullptr;
  if (passes_ == 0) return;
  if (hinted_) {
    job_.row_hint = row_lse_before_;
    job_.col_hint = col_lse_before_;
  } else {
    vectors_.affine(-1 / (eps_ * damping_rows_), f_before_, residual(rows_), row_hint_, rows_length_);
    vectors_.affine(-1 / (eps_ * damping_cols_), g_, residual(cols_), col_hint_, cols_length_);
    job_.row_hint = row_hint_;
    job_.col_hint = col_hint_;
  }
}

// Blocks of the cost are skipped once eps is small beside it; the table that tells them is made when it is first wanted.
void Slot::expect_skipping() {
  const bool skipping =
      n_ * m_ >= kSkipEntries && job_.row_hint && eps_ < kSkipBelow * spread_ && passes_ >= next_look_;
  job_.block_min = skipping ? table_.get() : nullptr;
  job_.missed = skipping ? missed_.get() : nullptr;
  if (!skipping) return;
  missed_.fill(0.0);
  if (table_ready_) return;
  Job table = job_;
  table.block_min_out = table_;
  run(table, phases_of(table, Operation::kBlockMin, task_.is_double));
  table_ready_ = true;
}

void Slot::run(const Job& job, const PhaseList& phases) const {
  if (threads_ > 1) return run_phases(job, phases, threads_);
  for (int k = 0; k < phases.count; ++k)
    for (int64_t unit = 0; unit < phases.phases[k].units; ++unit) phases.phases[k].unit(job, unit, 0);
}

// One read of the cost: f_ and the log-sum-exps of rows and columns, and answer_, the column potential that f asks for.
// `everyone`: columns without mass take part (once, in the first step of the textbook's entropy convention).
void Slot::sweep(bool everyone) {
  row_lse_.swap(row_lse_before_);
  col_lse_.swap(col_lse_before_);
  f_.swap(f_before_);
  hint();
  vectors_.affine(1 / eps_, g_, live_, log_v_, cols_length_);
  if (everyone)
    for (int64_t j = 0; j < m_; ++j) log_v_[j] = g_[j] / eps_;
  sum_.fill(0.0);
  expect_skipping();
  job_.row_out = row_lse_;
  job_.col_out = sum_;
  run(job_, phases_);
  ++passes_;
  hinted_ = true;

  swept_ = vectors_.rows({row_lse_, residual(rows_), offset_, eps_ * damping_rows_, 1 - damping_rows_, f_},
                         rows_length_);
  const double top = (swept_.top - shift_) * kLog2E;  // log2 of the heaviest row's sum
  weak_below_ = std::max(kWeak, double(n_) * kLost * std::exp2(top));
  Columns columns{sum_, log_v_, residual(cols_), g_, live_mass_, shift_, scale_, eps_ * damping_cols_, cols_.rate,
                  weak_below_, true, log_sum_, wanted_, col_lse_, answer_};
  columns_ = vectors_.columns(columns, cols_length_);
  columns.logs = false;
  if (job_.block_min || columns_.weak > 0) std::fill_n(mask_.get(), m_, false);
  const bool missed = job_.block_min && mark_missed();
  if ((columns_.weak > 0 || missed) && weak_columns()) columns_ = vectors_.columns(columns, cols_length_);
  if (columns_.broken == 0 && !swept_.lost) return;
  drop_unreachable();
  columns_ = vectors_.columns(columns, cols_length_);
}

// Marks the columns of which skipped blocks may have held more than rounding does.
bool Slot::mark_missed() {
  constexpr int64_t kFruitless = 8;  // passes after which skipping is tried again where nothing was skipped
  next_look_ = passes_ + kFruitless;
  const double tolerance = task_.is_double ? 0x1p-53 : 0x1p-24;
  bool any = false;
  for (int64_t b = 0; b < block_columns(m_); ++b) {
    if (missed_[b] == 0) continue;
    next_look_ = 0;
    const int64_t begin = b * kSkipColumns, end = std::min(m_, begin + kSkipColumns);
    double least = kInfinity, most = -kInfinity;
    for (int64_t j = begin; j < end; ++j) {
      if (!(log_v_[j] > -kHuge)) continue;
      least = std::min(least, sum_[j]);
      most = std::max(most, log_v_[j]);
    }
    if (missed_[b] <= tolerance * least) continue;
    for (int64_t j = begin; j < end; ++j) {  // a column misses in proportion to its scaling
      if (!(log_v_[j] > -kHuge) || missed_[b] * std::exp(log_v_[j] - most) <= tolerance * sum_[j]) continue;
      mask_[j] = any = true;
    }
  }
  return any;
}

// Columns whose sum may have lost terms to underflow are done again with a running maximum.
bool Slot::weak_columns() {
  bool any = false;
  for (int64_t j = 0; j < m_; ++j) {
    mask_[j] = mask_[j] || (log_v_[j] > -kHuge && !(sum_[j] >= weak_below_ && sum_[j] <= 1 / kWeak));
    any = any || mask_[j];
  }
  if (!any) return false;
  vectors_.scaling(damping_rows_, row_lse_, offset_, log_u_, rows_length_);
  masked_col_lse(log_u_, col_work_);
  for (int64_t j = 0; j < m_; ++j) {
    if (!mask_[j]) continue;
    log_sum_[j] = col_work_[j] + log_v_[j] - shift_;
    sum_[j] = std::exp(log_sum_[j]);
  }
  return true;
}

// Columns without a finite answer reach no row: they take no part from here on.  Points that should have found one
// left the range of the type.
void Slot::drop_unreachable() {
  std::unique_ptr<bool[]> rows(new bool[size_t(n_)]), cols(new bool[size_t(m_)]);
  const double step = eps_ * damping_cols_;
  for (int64_t i = 0; i < n_; ++i) rows[i] = row_lse_[i] == -kInfinity && rows_.mass[i] > 0;
  for (int64_t j = 0; j < m_; ++j) {
    const double rest = task_.entropy ? cols_.log_mass[j] : 0.0;
    cols[j] = live_[j] > -kHuge && !std::isfinite(step * (rest - col_lse_[j]));
  }
  find_lost(rows.get(), cols.get());
  for (int64_t j = 0; j < m_; ++j) {
    if (!cols[j]) continue;
    all_reachable_ = false;
    live_[j] = live_log_mass_[j] = log_v_[j] = -kInfinity;
    if (!cols_.exact) live_mass_[j] = 0;
  }
}

void Slot::find_lost(const bool* lost_rows, const bool* lost_cols) {
  for (int64_t i = 0; i < n_ && !lost_; ++i)
    for (int64_t j = 0; lost_rows[i] && j < m_ && !lost_; ++j)
      lost_ = cols_.mass[j] > 0 && std::isfinite(entry(i, j));
  for (int64_t i = 0; i < n_ && !lost_; ++i)
    for (int64_t j = 0; rows_.mass[i] > 0 && j < m_ && !lost_; ++j) lost_ = lost_cols[j] && std::isfinite(entry(i, j));
}

double Slot::entry(int64_t i, int64_t j) const {
  const int64_t at = i * job_.row_stride + j;
  return task_.is_double ? static_cast<const double*>(job_.cost)[at] : double(static_cast<const float*>(job_.cost)[at]);
}

// Half the difference of the largest and smallest finite cost over a sample of rows.
double Slot::spread() const {
  const int64_t stride = std::max(int64_t(1), n_ / kSampledRows), size = task_.is_double ? 8 : 4;
  double low = kInfinity, high = -kInfinity;
  for (int64_t i = 0; i < n_; i += stride) {
    const char* row = static_cast<const char*>(job_.cost) + i * job_.row_stride * size;
    const Extremes found = vectors_.extremes(row, task_.is_double, m_, true);
    low = std::min(low, found.low);
    high = std::max(high, found.high);
  }
  const double spread = 0.5 * high - 0.5 * low;
  return low < high && std::isfinite(spread) ? spread : 0.0;
}

void Slot::masked_col_lse(const double* log_u, double* lse) {
  if (!masked_ready_) {
    masked_ = job_;
    masked_.log_v = nullptr;
    masked_.log_u = log_u_;
    masked_.mask = mask_.get();
    masked_.row_hint = masked_.col_hint = nullptr;
    const int64_t scratch = lay_out(masked_, Operation::kColLseMasked, task_.is_double, threads_, nullptr);
    lay_out(masked_, Operation::kColLseMasked, task_.is_double, threads_, arena_.take(size_t(scratch)));
    masked_phases_ = phases_of(masked_, Operation::kColLseMasked, task_.is_double);
    masked_ready_ = true;
  }
  masked_.cost = job_.cost;
  masked_.log_u = log_u;
  masked_.col_out = lse;
  run(masked_, masked_phases_);
}

// g as it is shown: +inf for a column that no row reaches.
const double* Slot::shown_potential() {
  if (all_reachable_) return g_;
  for (int64_t j = 0; j < cols_length_; ++j)
    g_shown_[j] = live_[j] > -kHuge || !(cols_.mass[j] > 0) ? g_[j] : kInfinity;
  return g_shown_;
}

// The last sweep's (f, g), or with `rows_before` f of the sweep before and g of the last.
PairView Slot::pair(bool rows_before) {
  const double* g = shown_potential();
  if (rows_before) return {f_before_, row_lse_before_, g, log_v_, row_lse_, col_lse_before_};
  return {f_, row_lse_, g, log_v_, row_lse_, col_lse_};
}

double Slot::side_violation(const SideState& side, const double* log_scaling, const double* lse,
                            const double* potential, int64_t points) const {
  double* wanted = &side == &rows_ ? row_work_.get() : col_work_.get();
  vectors_.target(side.mass, potential, side.rate, wanted, padded(points));
  const Marginal marginal = vectors_.marginal(log_scaling, lse, wanted, padded(points));
  return marginal.deviation == 0 ? 0.0 : marginal.deviation / marginal.mass;
}

// Norm of the dual's gradient relative to the plan's mass (uotlib.certificate.violation).
double Slot::judge(const PairView& pair) {
  if (lost_) return std::numeric_limits<double>::quiet_NaN();
  vectors_.scaling(damping_rows_, pair.update, offset_, log_u_, rows_length_);
  return side_violation(rows_, log_u_, pair.row_lse, pair.f, n_) +
         side_violation(cols_, pair.log_v, pair.col_lse, pair.g, m_);
}

// Translation (f + t, g - t) that maximises the dual (uotlib.certificate.optimal_shift).
double Slot::optimal_shift() const {
  const double rate = rows_.rate + cols_.rate;
  if (!(rate > 0)) return 0.0;
  const double left =
      rows_.exact ? rows_.log_sum : log_total(rows_.mass, rows_.log_mass, f_, rows_.rate, rows_length_);
  const double right =
      cols_.exact ? cols_.log_sum : log_total(live_mass_, live_log_mass_, answer_, cols_.rate, cols_length_);
  const double ratio = left - right;
  return std::isfinite(ratio) ? ratio / rate : 0.0;
}

// log sum mass e^(-potential rate): of the plain sum, where nothing in it leaves the range of double.
double Slot::log_total(const double* mass, const double* log_mass, const double* potential, double rate,
                       int64_t length) const {
  constexpr double kSafe = 1e200;
  const double total = vectors_.total(mass, potential, rate, length);
  return total > 1 / kSafe && total < kSafe ? std::log(total) : vectors_.log_total(log_mass, potential, rate, length);
}

double Slot::largest(const double* f, const double* g) const {
  return std::max(vectors_.max_abs(f, rows_length_), vectors_.max_abs(g, cols_length_));
}

double Slot::tolerance(double largest) const {
  return tolerance_of(settings_.tol, roundoff(), largest, reg_);
}

bool Slot::stalled(const double* f, const double* g, double violation) {
  return record_.stalled(violation, passes_, roundoff(), largest(f, g), reg_);
}

}  // namespace uot
