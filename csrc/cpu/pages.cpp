#include "pages.h"

#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

namespace uot {
namespace {

constexpr size_t kLarge = size_t(2) << 20;
constexpr int kLargeOrder = 9;    // of pages of 4 KiB
constexpr size_t kPlenty = 4;     // others want some, and zones differ

// Whether pages of 2 MiB are there for those who ask.
bool on_request() {
  std::ifstream size("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
  std::ifstream mode("/sys/kernel/mm/transparent_hugepage/enabled");
  size_t bytes = 0;
  std::string line;
  return size >> bytes && bytes == kLarge && std::getline(mode, line) && line.find("[madvise]") != std::string::npos;
}

std::string contents(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

size_t free_large_pages(const char* buddyinfo) {
  size_t total = 0;
  std::istringstream lines(buddyinfo);
  for (std::string line; std::getline(lines, line);) {
    const size_t zone = line.find("zone");
    if (zone == std::string::npos) continue;
    std::istringstream words(line.substr(zone));
    std::string word;
    words >> word >> word;  // "zone", and its name
    size_t count = 0;
    for (int order = 0; words >> count; ++order)
      if (order >= kLargeOrder) total += count << (order - kLargeOrder);
  }
  return total;
}

void prefer_large_pages(void* begin, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < kOwnMapping) return;
  static const bool possible = on_request();
  if (!possible || free_large_pages(contents("/proc/buddyinfo").c_str()) < kPlenty * (bytes / kLarge)) return;
  const uintptr_t first = (uintptr_t(begin) + kLarge - 1) / kLarge * kLarge;
  const uintptr_t end = (uintptr_t(begin) + bytes) / kLarge * kLarge;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a wish: that it fails changes nothing
#else
  (void)begin, (void)bytes;
#endif
}

}  // namespace uot
