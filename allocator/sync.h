// allocator/sync.h - the mutex and the spin lock of this library, annotated so that clang checks who holds it (-Wthread-safety).
//
// A wrapper of std::mutex and not absl::Mutex: a packaged Abseil is built without ThreadSanitizer's instrumentation, so
// TSan sees neither its lock nor its unlock and reports races that are none.
#pragma once

#include <sched.h>

#include <atomic>
#include <mutex>

#if defined(__clang__)
#define GPULEDGER_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define GPULEDGER_THREAD_ANNOTATION(x)  // g++ has no such analysis
#endif

#define GPULEDGER_CAPABILITY(name) GPULEDGER_THREAD_ANNOTATION(capability(name))
#define GPULEDGER_SCOPED_CAPABILITY GPULEDGER_THREAD_ANNOTATION(scoped_lockable)
#define GPULEDGER_GUARDED_BY(mutex) GPULEDGER_THREAD_ANNOTATION(guarded_by(mutex))
#define GPULEDGER_PT_GUARDED_BY(mutex) GPULEDGER_THREAD_ANNOTATION(pt_guarded_by(mutex))
#define GPULEDGER_REQUIRES(...) GPULEDGER_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define GPULEDGER_EXCLUDES(...) GPULEDGER_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define GPULEDGER_ACQUIRE(...) GPULEDGER_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define GPULEDGER_RELEASE(...) GPULEDGER_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define GPULEDGER_TRY_ACQUIRE(...) GPULEDGER_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define GPULEDGER_RETURN_CAPABILITY(mutex) GPULEDGER_THREAD_ANNOTATION(lock_returned(mutex))
#define GPULEDGER_NO_THREAD_SAFETY_ANALYSIS GPULEDGER_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace gpuledger {

class GPULEDGER_CAPABILITY("mutex") Mutex {
 public:
  constexpr Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() GPULEDGER_ACQUIRE() {
    // What is held for some hundred nanoseconds is free again before this thread would have slept, and a queue of sleepers
    // costs a context switch a turn.
    for (int tries = 0; tries < 256; ++tries) {
      if (mutex_.try_lock()) return;
      if (tries < 64) {
        __builtin_ia32_pause();
      } else {
        sched_yield();
      }
    }
    mutex_.lock();
  }
  void Unlock() GPULEDGER_RELEASE() { mutex_.unlock(); }
  bool TryLock() GPULEDGER_TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  std::mutex mutex_;
};

// Holds `mutex` while it lives.
class [[nodiscard]] GPULEDGER_SCOPED_CAPABILITY MutexLock {
 public:
  [[nodiscard]] explicit MutexLock(Mutex& mutex) GPULEDGER_ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() GPULEDGER_RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// For what one thread takes nearly always: an exchange to lock, a store to unlock. Held for nanoseconds; whoever finds it
// taken spins a little, then lets others run.
class GPULEDGER_CAPABILITY("mutex") SpinLock {
 public:
  constexpr SpinLock() = default;
  SpinLock(const SpinLock&) = delete;
  SpinLock& operator=(const SpinLock&) = delete;
  void Lock() GPULEDGER_ACQUIRE() {
    if (locked_.exchange(true, std::memory_order_acquire)) [[unlikely]] Wait();
  }
  void Unlock() GPULEDGER_RELEASE() { locked_.store(false, std::memory_order_release); }
  bool TryLock() GPULEDGER_TRY_ACQUIRE(true) {
    return !locked_.load(std::memory_order_relaxed) && !locked_.exchange(true, std::memory_order_acquire);
  }

 private:
  [[gnu::noinline]] void Wait() {
    for (int spins = 0;; ++spins) {
      if (!locked_.load(std::memory_order_relaxed) && !locked_.exchange(true, std::memory_order_acquire)) return;
      if (spins < 64) {
        __builtin_ia32_pause();
      } else {
        sched_yield();
      }
    }
  }
  std::atomic<bool> locked_ = false;
};

// Holds `lock` while it lives.
class [[nodiscard]] GPULEDGER_SCOPED_CAPABILITY SpinHold {
 public:
  [[nodiscard]] explicit SpinHold(SpinLock& lock) GPULEDGER_ACQUIRE(lock) : lock_(lock) { lock_.Lock(); }
  ~SpinHold() GPULEDGER_RELEASE() { lock_.Unlock(); }
  SpinHold(const SpinHold&) = delete;
  SpinHold& operator=(const SpinHold&) = delete;

 private:
  SpinLock& lock_;
};

}  // namespace gpuledger
