// Giving memory back: on request, after idle time, under a lowered cap, when a stream or a private pool goes, at the end.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"
#include "fork_guard.h"

namespace gpuledger {

Bytes CachingAllocator::Impl::Release(Bytes target, uint64_t freed_before) {
  CompletePending();
  ReclaimCaches(nullptr);
  SynchronizeUnordered();
  const auto held = [this]() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { return placement.reserved() + placement.orphaned(); };
  const Bytes before = held();
  if (mapping) {
    placement.Trim(target, freed_before, MaySynchronize());
  } else {
    GiveBackRanges(target, freed_before);
  }
  return before - held();
}

Bytes CachingAllocator::ReleaseCached() {
  Bytes released;
  {
    MutexLock lock(impl_->growth);
    released = impl_->Release(Bytes(), Placement::kAnyTime);
  }
  impl_->TellOfReserved();
  return released;
}

Bytes CachingAllocator::ReleaseIdle(std::chrono::nanoseconds age) {
  Bytes released;
  {
    MutexLock lock(impl_->growth);
    const uint64_t now = impl_->upstream.now().value();
    const auto wanted = static_cast<uint64_t>(std::max<int64_t>(age.count(), 0));
    if (now >= wanted) released = impl_->Release(Bytes(), now - wanted);
  }
  impl_->TellOfReserved();
  return released;
}

void CachingAllocator::set_cap(Bytes cap) {
  {
    MutexLock lock(impl_->growth);
    impl_->options.cap = cap;
    if (impl_->placement.reserved() > cap) impl_->Release(cap, Placement::kAnyTime);
  }
  impl_->TellOfReserved();
}

// ---- streams and private pools that go ---------------------------------------------------------------------------------------

void CachingAllocator::Impl::RetireCaches(const StreamPools& pools) {
  Block* taken = nullptr;
  ledger.ForEachShard([&](Ledger::Shard& shard, bool) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    const ThreadCaches* caches = CachesOf(shard);
    if (caches == nullptr) return;
    for (const auto& cache : caches->all()) {
      if (cache->pools != &pools) continue;
      cache->retired.store(true, std::memory_order_release);
      taken = cache->TakeAll(taken);
    }
  });
  GiveBackList(taken);
}

bool CachingAllocator::Impl::ThreadIsGone(ThreadId thread) {
  bool found = false;
  ledger.ForEachShard([&](Ledger::Shard& shard, bool abandoned) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    found = found || (!abandoned && shard.thread == thread);
  });
  return !found;
}

absl::Status CachingAllocator::RetireStream(Stream stream) {
  Impl& a = *impl_;
  if (stream.device() != a.device) {
    return absl::InvalidArgumentError(fmt::format("RetireStream: the stream is of device {}, the allocator of device {}",
                                                  stream.device().value(), a.device.value()));
  }
  const StreamKey key = StreamKey::Of(stream);
  if (absl::Status waited = a.upstream.WaitStream(key.stream); !waited.ok()) return waited;
  MutexLock lock(a.growth);
  a.pending.Forget(key);
  a.CompletePending();
  for (const auto& pools : a.stream_pools) {
    if (pools->retired || pools->use.key != key) continue;
    a.RetireCaches(*pools);
    a.MarkOutliving(*pools, false);
    if (pools->use.id != kSharedPool) {
      pools->stream_is_gone = true;
      continue;
    }
    pools->retired = true;
    pools->use.order = WorkOrder::kNone;
  }
  return absl::OkStatus();
}

PoolId CachingAllocator::CreatePool() {
  MutexLock lock(impl_->growth);
  return impl_->private_pools.emplace_back(impl_->next_pool_id++);
}

absl::Status CachingAllocator::ReleasePool(PoolId id) {
  Impl& a = *impl_;
  MutexLock lock(a.growth);
  if (std::erase(a.private_pools, id) == 0) {
    return absl::NotFoundError(fmt::format("ReleasePool: there is no private pool {}: it was released before, or never made", id.value()));
  }
  for (const auto& pools : a.stream_pools) {
    if (pools->retired || pools->use.id != id) continue;
    a.RetireCaches(*pools);
    a.MarkOutliving(*pools, !pools->stream_is_gone);
    pools->retired = true;
    pools->use.order = WorkOrder::kUnknown;
  }
  return absl::OkStatus();
}

bool CachingAllocator::Impl::MaySynchronize() const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  if (upstream.Capturing(Stream::Default(device)) || pending.AnyCapturing()) return false;
  return streams_may_vanish || std::none_of(stream_pools.begin(), stream_pools.end(), [this](const auto& pools) {
    return !pools->retired && !pools->stream_is_gone && upstream.Capturing(pools->use.key.stream);
  });
}

void CachingAllocator::Impl::SynchronizeUnordered() {
  // A per-thread default stream whose thread is gone can be fenced by nobody any more. A private pool stays what it is.
  for (const auto& pools : stream_pools) {
    if (pools->retired || pools->use.id != kSharedPool || pools->use.key.reachable() || !ThreadIsGone(pools->use.key.thread)) continue;
    pools->retired = true;
    pools->use.order = WorkOrder::kUnknown;
    RetireCaches(*pools);
  }
  const auto unknown = [](const std::unique_ptr<StreamPools>& pools) { return pools->retired && pools->use.order == WorkOrder::kUnknown; };
  if (std::none_of(stream_pools.begin(), stream_pools.end(), unknown)) return;
  if (!MaySynchronize() || !upstream.Synchronize().ok()) return;
  for (const auto& pools : stream_pools) {
    if (unknown(pools)) pools->use.order = WorkOrder::kNone;
  }
}

void CachingAllocator::Impl::AbandonPending() {
  Ledger::Shard& shard = ledger.MyShard();
  for (Block* block : pending.TakeAll()) {
    SpinHold hold(shard.mutex);
    Uncharge(shard, block);
  }
}

// ---- the end -----------------------------------------------------------------------------------------------------------------

CachingAllocator::~CachingAllocator() {
  UnregisterForFork(this);
  if (!Settle().ok()) impl_->AbandonPending();
  for (const LiveAllocation& left : ledger().live()) {
    if (!left.pending) {
      Die(fmt::format("the allocator of device {} ends while a block of {} is in use, owner {} [{}]", ledger().device().value(),
                      ToString(left.charged), OwnerName(left.payer.owner), RoleName(left.payer.role)));
    }
  }
  while (true) {  // private pools that were not released end with their allocator
    PoolId left = kSharedPool;
    {
      MutexLock lock(impl_->growth);
      if (impl_->private_pools.empty()) break;
      left = impl_->private_pools.back();
    }
    ReleasePool(left).IgnoreError();
  }
  ReleaseCached();
  MutexLock lock(impl_->growth);
  impl_->placement.Unreserve();
}

// ---- callbacks -----------------------------------------------------------------------------------------------------------------

CachingAllocator::CallbackId CachingAllocator::OnOutOfMemory(OutOfMemoryCallback callback) {
  return impl_->callbacks.Add(std::move(callback));
}
CachingAllocator::CallbackId CachingAllocator::OnNearCap(double fraction, NearCapCallback callback) {
  return impl_->callbacks.Add(fraction, std::move(callback));
}
void CachingAllocator::RemoveCallback(CallbackId id) { impl_->callbacks.Remove(id); }

}  // namespace gpuledger
