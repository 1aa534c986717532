// A group of resident.h on a processor, for tests: blocks one after the other, in an order of the caller's, and inside
// a block threads one after the other.  What a phase reads before another block has written it, or a thread before a
// barrier, differs from one order to the next, or is the NaN that memory starts with.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "host_ring.h"

namespace uot::resident {

// Copies are of one block.
class HostBlock {
 public:
  // States of all threads; they live as long as the block works on a phase.
  template <class S> struct Threads : std::vector<S> {
    explicit Threads(HostBlock&) : std::vector<S>(kThreads) {
      std::memset(static_cast<void*>(this->data()), 0xff, kThreads * sizeof(S));
    }
  };

  HostBlock(int index, int count, int64_t room, const std::vector<int>& order)
      : index_(index), count_(count), order_(order), shared_(new Shared),
        rows_(new float[size_t(room) / sizeof(float)]), copies_(new std::deque<Copy>[kThreads]),
        ring_(new HostRing) {
    std::memset(static_cast<void*>(shared_.get()), 0xff, sizeof(Shared));
    std::fill_n(rows_.get(), size_t(room) / sizeof(float), std::nanf(""));
    shared_->place = {0, 0};
  }

  int index() const { return index_; }
  int count() const { return count_; }
  Shared& shared() { return *shared_; }
  float* rows() { return rows_.get(); }

  // f for every thread, then a barrier ...
  template <class F> void each(F f) {
    for (int t : order_) f(t);
  }
  template <class S, class F> void each(Threads<S>& states, F f) { alone(states, f); }
  // ... and for what no other thread of the block sees, without one.
  template <class S, class F> void alone(Threads<S>& states, F f) {
    for (int t : order_) f(t, states[size_t(t)]);
  }
  // The state of any thread, for what is the same in all.
  template <class S> S& first(Threads<S>& states) { return states[0]; }

  // One number of every thread, put together for all: lanes 16, 8, 4, 2, 1 apart, then warps 8, 4, 2, 1 apart.
  template <class F> double max(F f) {
    return folded<double>(f, [](double a, double b) { return fmax(a, b); });
  }
  template <class F> double sum(F f) { return folded<double>(f, std::plus<double>()); }
  template <class S, class F> double max(Threads<S>& states, F f) {
    return max([&](int t) { return f(t, states[size_t(t)]); });
  }
  template <class F> bool any(F f) {
    return max([&](int t) { return f(t) ? 1.0 : 0.0; }) > 0;
  }
  template <class S, class F> bool any(Threads<S>& states, F f) {
    return any([&](int t) { return f(t, states[size_t(t)]); });
  }
  // Copies to shared memory that come as late as may be; what is there before them is NaN meanwhile.
  void copy_four(int t, float* to, const float* from) {
    for (int k = 0; k < 4; ++k) copy_one(t, to + k, from + k);
  }
  void copy_one(int t, float* to, const float* from) {
    *to = std::nanf("");
    copies_[t].push_back({to, from});
  }
  void commit(int t) { copies_[t].push_back({nullptr, nullptr}); }
  // The thread's copies are there, but for those of the last `younger` commits.
  void wait_copies(int t, int younger) {
    std::deque<Copy>& open = copies_[t];
    auto commits = std::count_if(open.begin(), open.end(), [](const Copy& copy) { return !copy.to; });
    for (; commits > younger; open.pop_front()) {
      if (open.front().to) *open.front().to = *open.front().from;
      else --commits;
    }
  }

  // The ring of bulk copies: see ring.h.
  void expect(int stage, unsigned bytes) { ring_->expect(stage, bytes); }
  void copy_bulk(int stage, float* to, const float* from, unsigned bytes) { ring_->copy(stage, to, from, bytes); }
  void wait_full(int t, int stage, unsigned parity) { ring_->wait_full(t, stage, parity); }
  void wait_empty(int stage, unsigned parity) { ring_->wait_empty(stage, parity); }
  void release(int t, int stage) { ring_->release(t, stage); }
  Fault fault() const { return ring_->fault(); }

  // The largest `peak` of a team of so many warps, to all of its threads.
  template <class S> void team_max(Threads<S>& states, int warps) {
    folded<float>([&](int t) { return states[size_t(t)].peak; }, [](float a, float b) { return fmaxf(a, b); }, warps,
                  [&](int t, float peak) { states[size_t(t)].peak = peak; });
  }

  // f(state, r, sum of part[r] over the team's threads, whether to write it down) to scale[r] of all, for R rows.
  template <int R, class S, class F> void row_scales(Threads<S>& states, int warps, F f) {
    for (int r = 0; r < R; ++r)
      folded<float>([&](int t) { return states[size_t(t)].part[r]; }, std::plus<float>(), warps,
                    [&](int t, float total) {
                      S& s = states[size_t(t)];
                      s.scale[r] = f(s, r, total, t % (32 * warps) == 0);
                    });
  }

 private:
  struct Copy {
    float* to;
    const float* from;
  };

  template <class T, class F, class Fold> T folded(F f, Fold fold) {
    T all{};
    folded<T>(f, fold, kWarps, [&](int, T one) { all = one; });
    return all;
  }

  // Of teams of so many warps; give(t, its team's) for every thread.
  template <class T, class F, class Fold, class Give> void folded(F f, Fold fold, int warps, Give give) {
    T lanes[kThreads];
    for (int t : order_) lanes[t] = f(t);
    for (int half = 16; half > 0; half /= 2)
      for (int w = 0; w < kThreads; w += 32)
        for (int l = 0; l < half; ++l) lanes[w + l] = fold(lanes[w + l], lanes[w + l + half]);
    for (int half = warps / 2; half > 0; half /= 2)
      for (int w = 0; w < kWarps; ++w)
        if (w % warps < half) lanes[32 * w] = fold(lanes[32 * w], lanes[32 * (w + half)]);
    for (int t : order_) give(t, lanes[t / (32 * warps) * (32 * warps)]);
  }

  int index_, count_;
  const std::vector<int>& order_;
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<float[]> rows_;
  std::shared_ptr<std::deque<Copy>[]> copies_;
  std::shared_ptr<HostRing> ring_;
};

class HostGrid {
 public:
  // Group `number` of those that draw from a queue.  seed 0: blocks and threads in their order, 1: in the opposite
  // order, else shuffled.
  HostGrid(int blocks, int64_t room, uint64_t seed, int number, std::atomic<int64_t>& queue)
      : number_(number), queue_(queue), seed_(seed), random_(seed + uint64_t(number)), threads_(kThreads),
        order_(size_t(blocks)) {
    std::iota(threads_.begin(), threads_.end(), 0);
    std::iota(order_.begin(), order_.end(), 0);
    arrange(threads_);
    for (int k = 0; k < blocks; ++k) blocks_.emplace_back(new HostBlock(k, blocks, room, threads_));
    arrange(order_);
  }

  template <class F> void phase(F f) {
    if (seed_ > 1) arrange(order_);
    for (int k : order_) f(*blocks_[size_t(k)]);
    ++phases_;
  }
  const Track& track() const { return blocks_[0]->shared().track; }
  const Work& work() const { return blocks_[0]->shared().work; }
  int number() const { return number_; }
  int64_t draw() { return queue_++; }
  int64_t phases() const { return phases_; }
  // What a block's ring was first used wrongly for.
  Fault fault() const {
    for (const auto& block : blocks_)
      if (block->fault() != kNone) return block->fault();
    return kNone;
  }
  // Whether every block came to the same decisions.
  bool agree() const {
    return std::all_of(blocks_.begin(), blocks_.end(), [&](const auto& block) {
      const Track &one = block->shared().track, &first = track();
      return std::memcmp(&one.violation, &first.violation, sizeof(double)) == 0 && one.eps == first.eps &&
             one.done == first.done && one.record.pass == first.record.pass;
    });
  }

 private:
  template <class T> void arrange(std::vector<T>& items) {
    if (seed_ == 1) std::reverse(items.begin(), items.end());
    if (seed_ > 1) std::shuffle(items.begin(), items.end(), random_);
  }

  int number_;
  std::atomic<int64_t>& queue_;
  uint64_t seed_;
  std::mt19937_64 random_;
  std::vector<int> threads_;
  std::vector<int> order_;
  std::vector<std::unique_ptr<HostBlock>> blocks_;
  int64_t phases_ = 0;
};

}  // namespace uot::resident
