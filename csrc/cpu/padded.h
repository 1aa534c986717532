// Aligned arrays of double, padded for the array functions of vectors.h, and the memory they lie in.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "job.h"
#include "scratch.h"
#include "vectors.h"

namespace uot {

inline int64_t padded(int64_t length) { return (length + kPadding - 1) / kPadding * kPadding; }

// Hands out aligned pieces of a few allocations; all are freed with it.
class Arena {
 public:
  // `expected`: bytes that will be taken, more or less; more than that is another allocation.
  explicit Arena(size_t expected) : expected_(expected) {}

  void* take(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > left_) {
      left_ = std::max(bytes, (expected_ + kAlignment - 1) / kAlignment * kAlignment);
      parts_.push_back(scratch(left_));
      next_ = static_cast<char*>(parts_.back().get());
    }
    left_ -= bytes;
    return std::exchange(next_, next_ + bytes);
  }

 private:
  size_t expected_, left_ = 0;
  char* next_ = nullptr;
  std::vector<Scratch> parts_;
};

// A place in an arena: zero in the padding, and undefined before it.
class Array {
 public:
  Array() = default;
  // With a line between arrays: a multiple of 4 KiB from one to the next would have their loads wait for each other's
  // stores.
  Array(Arena& arena, int64_t length) : length_(padded(length)) {
    data_ = static_cast<double*>(arena.take(size_t(length_) * sizeof(double) + kAlignment));
    std::fill(data_ + length, data_ + length_, 0.0);
  }

  void swap(Array& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(length_, other.length_);
  }
  void fill(double value) { std::fill_n(data_, length_, value); }
  // The first `count` entries from elsewhere, `rest` behind them.
  void assign(const double* from, int64_t count, double rest) {
    std::copy_n(from, count, data_);
    std::fill(data_ + count, data_ + length_, rest);
  }

  operator double*() { return data_; }
  operator const double*() const { return data_; }
  double* get() const { return data_; }

 private:
  double* data_ = nullptr;
  int64_t length_ = 0;
};

}  // namespace uot
