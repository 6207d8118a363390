// allocator/per_thread.h - gives each thread its own T of an object (a ledger's shards).
//
// A thread makes its T at its first Get. When the thread exits its T is *abandoned*, and the next new thread *adopts* it:
// there are never more T's than there were threads at once. A T lives as long as the object. Objects are known by a uid
// that is never used again, so that a thread may exit, or ask, long after the object ended. Calls that a thread makes
// after its thread-local destructors ran (buffers in statics, other thread-local objects) share one *late* T.
//
// Locks: `abandon` and `adopt` run under a mutex of this object, which Get takes too unless the thread was here before.
// Call Get with nothing held that those two take.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "sync.h"

namespace gpuledger {

enum class PerThreadKind : uint8_t { kOwn, kLate };

namespace internal {

// What every object of this kind has in common; T is erased.
struct PerThreadCore {
  std::function<std::shared_ptr<void>(PerThreadKind)> make;
  std::function<void(void*)> abandon;
  std::function<void(void*)> adopt;

  Mutex mutex;
  bool ended GPULEDGER_GUARDED_BY(mutex) = false;
  std::vector<std::shared_ptr<void>> all GPULEDGER_GUARDED_BY(mutex);
  std::vector<void*> abandoned GPULEDGER_GUARDED_BY(mutex);
  void* late GPULEDGER_GUARDED_BY(mutex) = nullptr;
};

// Registers `core`, and returns its uid: not 0, never used again.
uint64_t BeginPerThread(const std::shared_ptr<PerThreadCore>& core);
void EndPerThread(uint64_t uid, PerThreadCore& core);
void* FindPerThread(uint64_t uid, PerThreadCore& core);
// In a forked child, where this is the only thread: abandons every T but that of the caller and the late one.
void AbandonOtherThreads(uint64_t uid, PerThreadCore& core);

struct PerThreadCached {
  uint64_t uid;
  void* object;
};
inline constexpr size_t kPerThreadCached = 8;
// No constructor, no destructor, no lookup: what a thread used last, by uid.
extern __thread PerThreadCached per_thread_cache[kPerThreadCached] __attribute__((tls_model("initial-exec")));

}  // namespace internal

template <class T>
class PerThread {
 public:
  struct Hooks {
    std::function<std::shared_ptr<T>(PerThreadKind)> make;
    std::function<void(T&)> abandon;  // on the thread that exits, or on the only one of a forked child
    std::function<void(T&)> adopt;    // on the thread that gets it
  };

  explicit PerThread(Hooks hooks) : core_(std::make_shared<internal::PerThreadCore>()) {
    core_->make = std::move(hooks.make);
    core_->abandon = [abandon = std::move(hooks.abandon)](void* object) { abandon(*static_cast<T*>(object)); };
    core_->adopt = [adopt = std::move(hooks.adopt)](void* object) { adopt(*static_cast<T*>(object)); };
    uid_ = internal::BeginPerThread(core_);
  }
  ~PerThread() { internal::EndPerThread(uid_, *core_); }
  PerThread(const PerThread&) = delete;
  PerThread& operator=(const PerThread&) = delete;

  // The T of this thread.
  [[nodiscard]] T& Get() {
    const internal::PerThreadCached& cached = internal::per_thread_cache[uid_ % internal::kPerThreadCached];
    if (cached.uid == uid_) [[likely]] return *static_cast<T*>(cached.object);
    return *static_cast<T*>(internal::FindPerThread(uid_, *core_));
  }

  // All T's there are now, abandoned ones and the late one among them. They stay valid as long as this object.
  [[nodiscard]] std::vector<T*> All() const {
    MutexLock lock(core_->mutex);
    return AllLocked();
  }

  void AbandonOtherThreads() { internal::AbandonOtherThreads(uid_, *core_); }

  // Around fork(): nobody gets, abandons or adopts a T in between. Returns all of them.
  std::vector<T*> LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    core_->mutex.Lock();
    return AllLocked();
  }
  std::vector<T*> AllWhileLocked() const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { return AllLocked(); }
  void UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { core_->mutex.Unlock(); }

 private:
  std::vector<T*> AllLocked() const GPULEDGER_REQUIRES(core_->mutex) {
    std::vector<T*> all;
    all.reserve(core_->all.size());
    for (const std::shared_ptr<void>& object : core_->all) all.push_back(static_cast<T*>(object.get()));
    return all;
  }

  std::shared_ptr<internal::PerThreadCore> core_;
  uint64_t uid_ = 0;
};

}  // namespace gpuledger
