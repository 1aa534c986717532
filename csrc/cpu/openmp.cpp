#include "openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace uot {
namespace {

// What compilers make of `omp parallel`, under one name in GNU's, LLVM's and Intel's runtime; and what sets its size.
struct Runtime {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();
};

// That which torch is linked with, whichever it is: linking one here could bring a second into the process.
Runtime runtime_of_torch() {
  Runtime found{};
#if defined(__linux__)
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch) return found;
  found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(torch, "GOMP_parallel"));
  found.max_threads = reinterpret_cast<decltype(found.max_threads)>(dlsym(torch, "omp_get_max_threads"));
  dlclose(torch);  // still loaded, for whoever loaded it
#endif
  return found;
}

// A child of fork() has none of these threads, and GNU's runtime would wait for them.
bool forked = false;
#if defined(__linux__)
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

const Runtime& runtime() {
  static const Runtime found = runtime_of_torch();
  return found;
}

}  // namespace

bool on_openmp_threads(void (*work)(void*), void* data, int threads) {
  if (!has_openmp_threads() || runtime().max_threads() != threads) return false;
  runtime().parallel(work, data, unsigned(threads), 0);
  return true;
}

bool has_openmp_threads() { return !forked && runtime().parallel && runtime().max_threads; }

}  // namespace uot
