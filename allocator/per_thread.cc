#include "per_thread.h"

#include <pthread.h>

#include <algorithm>

#include <absl/container/flat_hash_map.h>

namespace gpuledger::internal {

__thread PerThreadCached per_thread_cache[kPerThreadCached] __attribute__((tls_model("initial-exec")));

namespace {

// All live objects. Its mutex is taken last: nothing else is taken while it is held.
struct Registry {
  Mutex mutex;
  uint64_t last_uid GPULEDGER_GUARDED_BY(mutex) = 0;
  absl::flat_hash_map<uint64_t, std::shared_ptr<PerThreadCore>> live GPULEDGER_GUARDED_BY(mutex);
};

void LockRegistry();
void UnlockRegistry();

Registry& All() {
  static Registry& registry = []() -> Registry& {
    // Before any allocator's own handlers: so this one is locked after theirs, and unlocked first.
    pthread_atfork(LockRegistry, UnlockRegistry, UnlockRegistry);
    return *new Registry;  // never destroyed: threads may exit after main()
  }();
  return registry;
}

void LockRegistry() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { All().mutex.Lock(); }
void UnlockRegistry() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { All().mutex.Unlock(); }

std::shared_ptr<PerThreadCore> LiveCore(uint64_t uid) {
  MutexLock lock(All().mutex);
  const auto found = All().live.find(uid);
  return found == All().live.end() ? nullptr : found->second;
}

__thread bool thread_is_over = false;  // the thread's table below is destroyed

void Cache(uint64_t uid, void* object) { per_thread_cache[uid % kPerThreadCached] = {uid, object}; }

// What this thread has of every object; its destructor abandons it.
class ThreadTable {
 public:
  ~ThreadTable() {
    thread_is_over = true;
    for (PerThreadCached& cached : per_thread_cache) cached = {};
    for (const auto& [uid, object] : objects_) {
      const std::shared_ptr<PerThreadCore> core = LiveCore(uid);
      if (core == nullptr) continue;
      MutexLock lock(core->mutex);
      if (core->ended) continue;  // the object's end waits for this mutex: `abandon` finds it whole
      core->abandon(object);
      core->abandoned.push_back(object);
    }
  }

  void* Find(uint64_t uid) const {
    const auto found = objects_.find(uid);
    return found == objects_.end() ? nullptr : found->second;
  }

  void Insert(uint64_t uid, void* object) {
    if (objects_.size() >= prune_at_) {  // a long-lived thread that sees many ledgers come and go
      MutexLock lock(All().mutex);
      absl::erase_if(objects_, [](const auto& entry) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { return !All().live.contains(entry.first); });
      prune_at_ = std::max<size_t>(16, 2 * objects_.size());
    }
    objects_.emplace(uid, object);
  }

 private:
  absl::flat_hash_map<uint64_t, void*> objects_;
  size_t prune_at_ = 16;
};

ThreadTable& ThisTable() {
  thread_local ThreadTable table;
  return table;
}

void* LateObject(PerThreadCore& core) {
  MutexLock lock(core.mutex);
  if (core.late == nullptr) core.late = core.all.emplace_back(core.make(PerThreadKind::kLate)).get();
  return core.late;
}

void* NewObject(PerThreadCore& core) {
  MutexLock lock(core.mutex);
  if (core.abandoned.empty()) return core.all.emplace_back(core.make(PerThreadKind::kOwn)).get();
  void* const object = core.abandoned.back();
  core.abandoned.pop_back();
  core.adopt(object);
  return object;
}

}  // namespace

uint64_t BeginPerThread(const std::shared_ptr<PerThreadCore>& core) {
  MutexLock lock(All().mutex);
  const uint64_t uid = ++All().last_uid;
  All().live.emplace(uid, core);
  return uid;
}

void EndPerThread(uint64_t uid, PerThreadCore& core) {
  std::vector<std::shared_ptr<void>> all;  // dies here, and not with a thread that is just exiting
  {
    MutexLock lock(core.mutex);
    core.ended = true;
    core.abandoned.clear();
    all.swap(core.all);
  }
  MutexLock lock(All().mutex);
  All().live.erase(uid);
}

void* FindPerThread(uint64_t uid, PerThreadCore& core) {
  void* object = nullptr;
  if (thread_is_over) {
    object = LateObject(core);
  } else if (object = ThisTable().Find(uid); object == nullptr) {
    object = NewObject(core);
    ThisTable().Insert(uid, object);
  }
  Cache(uid, object);
  return object;
}

void AbandonOtherThreads(uint64_t uid, PerThreadCore& core) {
  const void* const mine = thread_is_over ? nullptr : ThisTable().Find(uid);
  MutexLock lock(core.mutex);
  for (const std::shared_ptr<void>& object : core.all) {
    const bool is_free = std::find(core.abandoned.begin(), core.abandoned.end(), object.get()) != core.abandoned.end();
    if (object.get() == mine || object.get() == core.late || is_free) continue;
    core.abandon(object.get());
    core.abandoned.push_back(object.get());
  }
}

}  // namespace gpuledger::internal
