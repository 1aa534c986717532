#include "openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace uot {
namespace {

// What compilers make of `omp parallel`, under one name in GNU's, LLVM's and Intel's runtime.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Of the runtime that torch is linked with, whichever that is: linking one here could bring a second into the process.
Parallel torch_parallel() {
#if defined(__linux__)
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch) return nullptr;
  const auto found = reinterpret_cast<Parallel>(dlsym(torch, "GOMP_parallel"));
  dlclose(torch);  // still loaded, for whoever loaded it
  return found;
#else
  return nullptr;
#endif
}

// A child of fork() has none of these threads, and GNU's runtime would wait for them.
bool forked = false;
#if defined(__linux__)
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

Parallel parallel() {
  static const Parallel found = torch_parallel();
  return forked ? nullptr : found;
}

}  // namespace

bool on_openmp_threads(void (*work)(void*), void* data, int threads) {
  const Parallel run = parallel();
  if (run) run(work, data, unsigned(threads), 0);
  return run != nullptr;
}

bool has_openmp_threads() { return parallel() != nullptr; }

}  // namespace uot
