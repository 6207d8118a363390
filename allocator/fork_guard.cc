#include "fork_guard.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <absl/container/inlined_vector.h>

#include "gpuledger/process.h"
#include "scopes.h"
#include "sync.h"

namespace gpuledger {
namespace {

// An allocator as a keeper.
class AllocatorsLedger final : public LedgerKeeper {
 public:
  explicit AllocatorsLedger(CachingAllocator& allocator) : allocator_(allocator) {}
  Ledger& ledger() override { return allocator_.ledger(); }
  [[nodiscard]] TimePoint now() const override { return allocator_.upstream().now(); }
  [[nodiscard]] Totals totals() const override { return allocator_.totals(); }
  [[nodiscard]] std::string_view memory_name() const override { return allocator_.upstream().name(); }
  [[nodiscard]] MemoryInfo memory_info() const override { return allocator_.upstream().memory_info(); }
  [[nodiscard]] absl::StatusOr<LiveAllocation> Find(uint64_t address) const override { return allocator_.Find(Here(address)); }
  absl::Status Transfer(uint64_t address, Payer to) override { return allocator_.Transfer(Here(address), to); }
  absl::Status Settle() override { return allocator_.Settle(); }
  void LockForFork() override { allocator_.LockForFork(); }
  void UnlockAfterFork() override { allocator_.UnlockAfterFork(); }
  void ForgetOtherThreads() override { allocator_.ForgetOtherThreads(); }

 private:
  [[nodiscard]] DevicePtr Here(uint64_t address) const { return {allocator_.upstream().device(), address}; }
  CachingAllocator& allocator_;
};

struct Registered {
  LedgerKeeper* keeper;
  CachingAllocator* allocator = nullptr;          // if it is one's
  std::unique_ptr<LedgerKeeper> owned = nullptr;  // then the keeper is made here
  uint32_t visits = 0;                            // it stays until they are over
};
struct Registry {
  Mutex mutex;
  std::vector<Registered> keepers GPULEDGER_GUARDED_BY(mutex);

  Registered* Find(const LedgerKeeper* keeper) GPULEDGER_REQUIRES(mutex) {
    for (Registered& r : keepers) {
      if (r.keeper == keeper) return &r;
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
  for (const Registered& r : All().keepers) r.keeper->LockForFork();
  LockNamesForFork();
  LockScopesForFork();
}

void AfterInParent() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  UnlockScopesAfterFork();
  UnlockNamesAfterFork();
  for (auto it = All().keepers.rbegin(); it != All().keepers.rend(); ++it) it->keeper->UnlockAfterFork();
  All().mutex.Unlock();
}

void AfterInChild() {
  AfterInParent();
  MutexLock lock(All().mutex);
  for (Registered& r : All().keepers) {
    r.keeper->ForgetOtherThreads();
    r.visits = 0;  // the visitors are not here
  }
}

}  // namespace

void RegisterForFork(CachingAllocator* allocator) {
  auto keeper = std::make_unique<AllocatorsLedger>(*allocator);
  MutexLock lock(All().mutex);
  All().keepers.push_back({keeper.get(), allocator, std::move(keeper)});
}

void UnregisterForFork(CachingAllocator* allocator) {
  LedgerKeeper* keeper = nullptr;
  {
    MutexLock lock(All().mutex);
    for (const Registered& r : All().keepers) {
      if (r.allocator == allocator) keeper = r.keeper;
    }
  }
  UnregisterKeeper(keeper);
}

void RegisterKeeper(LedgerKeeper* keeper) {
  MutexLock lock(All().mutex);
  All().keepers.push_back({keeper});
}

void UnregisterKeeper(LedgerKeeper* keeper) {
  for (;; sched_yield()) {
    MutexLock lock(All().mutex);
    if (All().Find(keeper)->visits != 0) continue;
    std::erase_if(All().keepers, [keeper](const Registered& r) { return r.keeper == keeper; });
    return;
  }
}

namespace {

void Visit(absl::FunctionRef<void(LedgerKeeper*, CachingAllocator*)> visit) {
  struct Visited {
    LedgerKeeper* keeper;
    CachingAllocator* allocator;
  };
  absl::InlinedVector<Visited, 8> visited;
  {
    MutexLock lock(All().mutex);
    for (Registered& r : All().keepers) {
      r.visits += 1;
      visited.push_back({r.keeper, r.allocator});
    }
  }
  for (const Visited& v : visited) visit(v.keeper, v.allocator);
  MutexLock lock(All().mutex);
  for (const Visited& v : visited) {
    if (Registered* r = All().Find(v.keeper); r->visits != 0) r->visits -= 1;
  }
}

}  // namespace

void ForEachKeeper(absl::FunctionRef<void(LedgerKeeper&)> visit) {
  Visit([&](LedgerKeeper* keeper, CachingAllocator*) { visit(*keeper); });
}

void ForEachAllocator(absl::FunctionRef<void(CachingAllocator&)> visit) {
  Visit([&](LedgerKeeper*, CachingAllocator* allocator) {
    if (allocator != nullptr) visit(*allocator);
  });
}

}  // namespace gpuledger
