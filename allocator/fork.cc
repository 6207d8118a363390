// Around fork(): a child finds every allocator whole.
//
// All locks are taken in their order, so nothing is half done but what a thread does between two locks: a block that it had
// taken and not yet charged, or claimed and not yet given back. In the child, where those threads are not, such blocks go
// back to their pools (their charges, if they have some, stay: the child owns what its parent owned).
#include "allocator_impl.h"

namespace gpuledger {

void CachingAllocator::LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  Impl& a = *impl_;
  a.callbacks.mutex().Lock();
  a.growth.Lock();
  a.pending.mutex().Lock();
  for (const auto& pool : a.placement.pools()) pool->mutex.Lock();
  a.ledger_owned.LockForFork();
}

void CachingAllocator::UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  Impl& a = *impl_;
  a.ledger_owned.UnlockAfterFork();
  const auto& pools = a.placement.pools();
  for (auto pool = pools.rbegin(); pool != pools.rend(); ++pool) (*pool)->mutex.Unlock();
  a.pending.mutex().Unlock();
  a.growth.Unlock();
  a.callbacks.mutex().Unlock();
}

void CachingAllocator::ForgetOtherThreads() {
  Impl& a = *impl_;
  a.ledger_owned.ForgetOtherThreads();
  if (!a.upstream.capabilities().survives_fork) a.refuses = true;
  MutexLock lock(a.growth);
  for (const auto& pools : a.stream_pools) {
    if (a.refuses) a.RetireCaches(*pools);
  }
  a.ReclaimCaches(nullptr);
  std::vector<Block*> pending;
  for (const auto& pool : a.placement.pools()) {
    PoolLock pool_lock(*pool);
    std::vector<Block*> on_its_way;
    for (Block* b = pool->first(); b != nullptr; b = b->right) {
      if (!b->taken()) continue;
      if (b->front.charge == nullptr) {
        on_its_way.push_back(b);
      } else if (b->front.state.load() == FrontState::kPending) {
        pending.push_back(b);
      } else {
        b->front.state = FrontState::kInUse;
      }
    }
    for (Block* b : on_its_way) pool->Put(b, a.upstream.now().value());
  }
  a.pending.TakeIn(pending);
}

}  // namespace gpuledger
