#include "fork_guard.h"

#include <pthread.h>

#include <algorithm>
#include <vector>

#include "sync.h"

namespace gpuledger {
namespace {

struct Registry {
  Mutex mutex;
  std::vector<CachingAllocator*> allocators GPULEDGER_GUARDED_BY(mutex);
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
  for (CachingAllocator* allocator : All().allocators) allocator->LockForFork();
  LockNamesForFork();
}

void AfterInParent() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  UnlockNamesAfterFork();
  for (auto it = All().allocators.rbegin(); it != All().allocators.rend(); ++it) (*it)->UnlockAfterFork();
  All().mutex.Unlock();
}

void AfterInChild() {
  AfterInParent();
  MutexLock lock(All().mutex);
  for (CachingAllocator* allocator : All().allocators) allocator->ForgetOtherThreads();
}

}  // namespace

void RegisterForFork(CachingAllocator* allocator) {
  MutexLock lock(All().mutex);
  All().allocators.push_back(allocator);
}

void UnregisterForFork(CachingAllocator* allocator) {
  MutexLock lock(All().mutex);
  std::erase(All().allocators, allocator);
}

}  // namespace gpuledger
