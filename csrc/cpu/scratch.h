// Memory for the time of a call.  Internal linkage, as kernels.cpp is compiled once for each instruction set.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "job.h"

namespace uot {

// From here on memory is the system's own: the allocator would keep it, or what it lay between, for later.
constexpr size_t kMappedBytes = size_t(1) << 18;

class Release {
 public:
  explicit Release(size_t bytes = 0) : bytes_(bytes) {}
  void operator()(void* memory) const {
    if (bytes_ >= kMappedBytes) munmap(memory, bytes_);
    else std::free(memory);
  }

 private:
  size_t bytes_;
};

using Scratch = std::unique_ptr<void, Release>;

// Has the system put pages under fresh memory at once, which takes less than a fault for each.
static inline void populate(void* begin, size_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  const uintptr_t page = 4096, first = (uintptr_t(begin) + page - 1) / page * page;
  const uintptr_t end = (uintptr_t(begin) + bytes) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_WRITE);
#else
  (void)begin, (void)bytes;
#endif
}

// Aligned, undefined.  Throws std::bad_alloc.
static inline Scratch scratch(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes == 0) bytes = kAlignment;
  const bool mapped = bytes >= kMappedBytes;
  void* memory = mapped ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                        : std::aligned_alloc(kAlignment, bytes);
  if (!memory || memory == MAP_FAILED) throw std::bad_alloc();
  return Scratch(memory, Release(bytes));
}

}  // namespace uot
