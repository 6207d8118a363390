// sync.h - the one mutex of this library, annotated so that clang checks who holds it (-Wthread-safety).
//
// A wrapper of std::mutex and not absl::Mutex: a packaged Abseil is built without ThreadSanitizer's instrumentation, so
// TSan sees neither its lock nor its unlock and reports races that are none.
#pragma once

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
#define GPULEDGER_NO_THREAD_SAFETY_ANALYSIS GPULEDGER_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace gpuledger {

class GPULEDGER_CAPABILITY("mutex") Mutex {
 public:
  constexpr Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() GPULEDGER_ACQUIRE() { mutex_.lock(); }
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

}  // namespace gpuledger
