// Zeroed, aligned arrays of double, padded for the array functions of vectors.h.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "job.h"
#include "vectors.h"

namespace uot {

inline int64_t padded(int64_t length) { return (length + kPadding - 1) / kPadding * kPadding; }

class Array {
 public:
  Array() = default;
  explicit Array(int64_t length) : length_(padded(length)) {
    const size_t bytes = (size_t(length_) * sizeof(double) + kAlignment - 1) / kAlignment * kAlignment;
    data_ = static_cast<double*>(std::aligned_alloc(kAlignment, bytes ? bytes : kAlignment));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  Array(Array&& other) noexcept { swap(other); }
  Array& operator=(Array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Array() { std::free(data_); }

  void swap(Array& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(length_, other.length_);
  }
  void fill(double value) {
    for (int64_t j = 0; j < length_; ++j) data_[j] = value;
  }
  // The first `count` entries from elsewhere, `rest` behind them.
  void assign(const double* from, int64_t count, double rest) {
    for (int64_t j = 0; j < length_; ++j) data_[j] = j < count ? from[j] : rest;
  }

  operator double*() { return data_; }
  operator const double*() const { return data_; }
  double* get() const { return data_; }

 private:
  double* data_ = nullptr;
  int64_t length_ = 0;
};

}  // namespace uot
