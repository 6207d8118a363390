#include "fork_guard.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <vector>

#include <absl/container/inlined_vector.h>

#include "gpuledger/process.h"
#include "scopes.h"
#include "sync.h"

namespace gpuledger {
namespace {

struct Registered {
  CachingAllocator* allocator;
  uint32_t visits = 0;  // it stays until they are over
};
struct Registry {
  Mutex mutex;
  std::vector<Registered> allocators GPULEDGER_GUARDED_BY(mutex);

  Registered* Find(const CachingAllocator* allocator) GPULEDGER_REQUIRES(mutex) {
    for (Registered& r : allocators) {
      if (r.allocator == allocator) return &r;
    }
    return nullptr;
  }
};

void Before();
void AfterInParent();
void AfterInChild();

Registry& All() {
  static Registry& registry = []() -> Registry& {
    pthread_atfork(Before, AfterInParent, AfterInChild);
    return *new Registry;  // never destroyed: fork is legal after main()
  }();
  return registry;
}

void Before() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  All().mutex.Lock();
  for (const Registered& r : All().allocators) r.allocator->LockForFork();
  LockNamesForFork();
  LockScopesForFork();
}

void AfterInParent() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  UnlockScopesAfterFork();
  UnlockNamesAfterFork();
  for (auto it = All().allocators.rbegin(); it != All().allocators.rend(); ++it) it->allocator->UnlockAfterFork();
  All().mutex.Unlock();
}

void AfterInChild() {
  AfterInParent();
  MutexLock lock(All().mutex);
  for (Registered& r : All().allocators) {
    r.allocator->ForgetOtherThreads();
    r.visits = 0;  // the visitors are not here
  }
}

}  // namespace

void RegisterForFork(CachingAllocator* allocator) {
  MutexLock lock(All().mutex);
  All().allocators.push_back({allocator});
}

void UnregisterForFork(CachingAllocator* allocator) {
  for (;; sched_yield()) {
    MutexLock lock(All().mutex);
    if (All().Find(allocator)->visits != 0) continue;
    std::erase_if(All().allocators, [allocator](const Registered& r) { return r.allocator == allocator; });
    return;
  }
}

void ForEachAllocator(absl::FunctionRef<void(CachingAllocator&)> visit) {
  absl::InlinedVector<CachingAllocator*, 8> visited;
  {
    MutexLock lock(All().mutex);
    for (Registered& r : All().allocators) {
      r.visits += 1;
      visited.push_back(r.allocator);
    }
  }
  for (CachingAllocator* allocator : visited) visit(*allocator);
  MutexLock lock(All().mutex);
  for (const CachingAllocator* allocator : visited) {
    if (Registered* r = All().Find(allocator); r->visits != 0) r->visits -= 1;
  }
}

}  // namespace gpuledger
