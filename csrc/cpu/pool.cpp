#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "flush.h"

namespace uot {
namespace {

inline void relax() {
#if defined(__SSE2__)
  _mm_pause();
#endif
}

// One call in flight.  Units are handed out by a counter; a phase ends when all its units are done, so a worker that
// wakes late finds nothing to do and nobody waits for it.
class Run {
 public:
  Run(const Job& job, const PhaseList& list) : job_(job), phases_(list.phases), count_(list.count) {}

  void work(int worker) {
    const FlushDenormals flush;
    for (int k = 0; k < count_; ++k) {
      const int64_t units = phases_[k].units;
      int64_t done_here = 0;
      for (int64_t i; (i = next_[k].fetch_add(1, std::memory_order_relaxed)) < units; ++done_here)
        phases_[k].unit(job_, i, worker);
      done_[k].fetch_add(done_here, std::memory_order_acq_rel);
      for (int spins = 0; done_[k].load(std::memory_order_acquire) < units; ++spins) {
        if (spins < 4096) relax(); else std::this_thread::yield();
      }
    }
  }

 private:
  const Job& job_;
  const Phase* phases_;
  int count_;
  std::atomic<int64_t> next_[PhaseList::kMost] = {}, done_[PhaseList::kMost] = {};
};

class Pool {
 public:
  // False, and nothing done, where another thread is using the pool.
  bool run(Run& run, int threads) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    const int helpers = grow(threads - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      run_ = &run;
      helpers_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    run.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    run_ = nullptr;  // whoever has not started by now does not start
    while (active_ > 0) {  // the work is done: they are only on their way out
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
    return true;
  }

 private:
  // Up to `wanted` threads; fewer where the system refuses more.
  int grow(int wanted) {
    while (size_ < wanted) {
      try {
        std::thread(&Pool::serve, this, size_ + 1, generation_.load()).detach();
      } catch (const std::system_error&) {
        break;
      }
      ++size_;
    }
    return size_ < wanted ? size_ : wanted;
  }

  void serve(int worker, uint64_t seen) {
    for (;;) {
      // Iterations follow one another closely: a short wait awake spares most of them the wake-up.
      for (int spins = 0; spins < 2000 && generation_.load(std::memory_order_acquire) == seen; ++spins) relax();
      Run* run = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (run_ && worker <= helpers_) {
          run = run_;
          ++active_;
        }
      }
      if (!run) continue;
      run->work(worker);
      std::lock_guard<std::mutex> lock(mutex_);
      --active_;
    }
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  Run* run_ = nullptr;
  int helpers_ = 0, active_ = 0, size_ = 0;
};

// Never destroyed: its threads may outlive main().  A child of fork() has none of them, and gets a pool of its own.
std::atomic<Pool*> pool{new Pool};
const int registered = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

}  // namespace

void run_phases(const Job& job, const PhaseList& list, int threads) {
  Run run(job, list);
  int64_t widest = 0;
  for (int k = 0; k < list.count; ++k) widest = list.phases[k].units > widest ? list.phases[k].units : widest;
  if (threads > widest) threads = int(widest);
  if (threads <= 1 || !pool.load()->run(run, threads)) run.work(0);
}

}  // namespace uot
