// The cold half of AllocateRaw: what happens on a miss, rung by rung.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {
namespace {

std::string_view Text(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

template <class T>
bool Exhausted(const absl::StatusOr<T>& tried) {
  return !tried.ok() && absl::IsResourceExhausted(tried.status());
}

}  // namespace

absl::StatusOr<Block*> CachingAllocator::Impl::AllocateSlow(const Place& place, SizeClass size_class, const ChargeRequest& request) {
  absl::StatusOr<Block*> block = nullptr;
  const auto climb = [&](bool last) {
    MutexLock lock(growth);
    block = Climb(place, size_class, last);
    return !Exhausted(block);
  };
  const auto climb_after_waiting = [&] {
    WaitForPending().IgnoreError();  // whatever could be waited for is cached now
    return climb(true);
  };
  // Rungs 1 to 3, which wait for nobody; the same and two more, which disturb everybody (all caches, released pools,
  // trimming); after each callback that freed something; after pending work.
  const bool found = climb(false) || climb(true) ||
                     callbacks.FreeSome(size_class.charged(), [&] { return climb(true); }) || climb_after_waiting();
  if (found) return block;
  MutexLock lock(growth);
  return OutOfMemory(place, size_class, request, Text(block.status()));
}

absl::StatusOr<Block*> CachingAllocator::Impl::Climb(const Place& place, SizeClass size_class, bool last) {
  if (refuses) return Refusal();
  if (!mapping) return AllocateFromWholeRanges(place, size_class, last);
  Pool& pool = place.pools->For(size_class.charged());
  const auto take = [&](Pool& from) { return TakeFrom(from, size_class, place.cache); };
  // 1. What another thread has put there meanwhile; fences that have passed since.
  if (Block* block = take(pool)) return block;
  if (CompletePending() > 0) {
    if (Block* block = take(pool)) return block;
  }
  // 2. Caches of this stream, whoever's, and idle ones of other streams: their blocks may join into one that fits.
  ReclaimCaches(last ? nullptr : place.pools);
  if (last) SynchronizeUnordered();
  if (Block* block = take(pool)) return block;
  // 3. New handles up to the gate, donors, new handles up to the cap.
  absl::StatusOr<Block*> grown = Grow(place, size_class);
  if (!Exhausted(grown) || !last) return grown;
  // 4. Handles of sizes that do not fit go back, so that others can be had.
  placement.Trim(Bytes(), Placement::kAnyTime, MaySynchronize());
  grown = Grow(place, size_class);
  if (!Exhausted(grown)) return grown;
  // 5. The stream's other pool.
  if (Block* block = take(place.pools->Beside(size_class.charged()))) return block;
  return grown;
}

void CachingAllocator::Impl::TellOfReserved() {
  if (!callbacks.near_cap()) return;
  Totals totals;
  {
    MutexLock lock(growth);
    totals = TotalsNow();
  }
  callbacks.NoteReserved(totals, std::min(totals.cap, device_total));
}

absl::Status CachingAllocator::Impl::Refusal() const {
  return absl::FailedPreconditionError(fmt::format(
      "this process was forked from one that uses device {} ({}), which works only in the process that initialised it: start "
      "workers with spawn or forkserver, or keep to the CPU in this one",
      device.value(), upstream.name()));
}

absl::StatusOr<Block*> CachingAllocator::Impl::Grow(const Place& place, SizeClass size_class) {
  if (options.release_after.count() > 0) {
    const uint64_t now = upstream.now().value(), age = static_cast<uint64_t>(options.release_after.count());
    if (now > age) placement.Trim(Bytes(), now - age);
  }
  const Usage live = ExactUsage();
  absl::StatusOr<Block*> grown =
      placement.Grow(place.pools->For(size_class.charged()), size_class, live.in_use + live.pending, live.peak, options.cap);
  if (grown.ok()) Welcome(*grown, place.cache);
  return grown;
}

Usage CachingAllocator::Impl::ExactUsage() const {
  Stopped stopped(ledger);
  return ledger.Read(ledger.total);
}

// ---- pending blocks ------------------------------------------------------------------------------------------------------

uint64_t CachingAllocator::Impl::CompletePending() { return Complete(pending.TakePassed()); }

uint64_t CachingAllocator::Impl::Complete(const std::vector<Block*>& passed) {
  if (passed.empty()) return 0;
  Ledger::Shard& shard = ledger.MyShard();
  for (Block* block : passed) {
    {
      SpinHold hold(shard.mutex);
      Uncharge(shard, block);
    }
    GiveBack(block);
  }
  return passed.size();
}

absl::Status CachingAllocator::Impl::WaitForPending() {
  absl::Status waited = pending.Wait();
  CompletePending();
  return waited;
}

uint64_t CachingAllocator::CompletePending() { return impl_->CompletePending(); }
uint64_t CachingAllocator::TryCompletePending() {
  return impl_->pending.any_fenced() ? impl_->Complete(impl_->pending.TryTakePassed()) : 0;
}

absl::Status CachingAllocator::Settle() {
  const absl::Status waited = impl_->WaitForPending();
  const size_t left = impl_->pending.size();
  if (left == 0 || !waited.ok()) return waited;
  return absl::InternalError(fmt::format("{} block(s) stay pending: they were freed while the others were waited for", left));
}

// ---- thread caches -------------------------------------------------------------------------------------------------------

void CachingAllocator::Impl::ReclaimCaches(const StreamPools* pools) {
  Block* taken = nullptr;
  ledger.ForEachShard([&](Ledger::Shard& shard, bool abandoned) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    const ThreadCaches* caches = CachesOf(shard);
    if (caches == nullptr) return;
    for (const auto& cache : caches->all()) {
      const bool idle = abandoned || !std::exchange(cache->used, false);
      if (pools != nullptr && cache->pools != pools && !idle) continue;
      taken = cache->TakeAll(taken);
    }
  });
  GiveBackList(taken);
}

// ---- places --------------------------------------------------------------------------------------------------------------

absl::StatusOr<CachingAllocator::Impl::Place> CachingAllocator::Impl::MakePlace(Ledger::Shard& shard, Stream stream, PoolId id) {
  MutexLock lock(growth);
  if (refuses) return Refusal();
  absl::StatusOr<StreamPools*> pools = PoolsOf(StreamKey::Of(stream), id);
  if (!pools.ok()) return pools.status();
  if (shard.late) return Place{*pools, nullptr};
  SpinHold hold(shard.mutex);
  if (shard.extension == nullptr) shard.extension = std::make_unique<ThreadCaches>();
  return Place{*pools, &CachesOf(shard)->Make(shard, **pools)};
}

absl::StatusOr<StreamPools*> CachingAllocator::Impl::PoolsOf(StreamKey key, PoolId id) {
  if (id != kSharedPool && std::find(private_pools.begin(), private_pools.end(), id) == private_pools.end()) {
    return absl::NotFoundError(fmt::format("there is no private pool {}: it was released, or never made", id.value()));
  }
  for (const auto& pools : stream_pools) {
    if (pools->retired || pools->use.key != key || pools->use.id != id) continue;
    pools->stream_is_gone = false;
    return pools.get();
  }
  StreamPools* pools = ReusablePools(id);
  // A range is as good as endless, a process's addresses are not: so many are left lying for what is cached in them.
  constexpr ptrdiff_t kMostLeftLying = 64;
  // (Not in a capture: giving back may synchronise the device.)
  if (pools == nullptr && std::count_if(stream_pools.begin(), stream_pools.end(), [](const auto& p) { return p->retired; }) >= kMostLeftLying &&
      !upstream.Capturing(key.stream)) {
    Release(Bytes(), Placement::kAnyTime);
    pools = ReusablePools(id);
  }
  if (pools == nullptr) pools = stream_pools.emplace_back(std::make_unique<StreamPools>()).get();
  pools->use = {.key = key, .id = id};
  pools->stream_is_gone = false;
  for (const auto& [kind, pool] : {std::pair{PoolKind::kSmall, &pools->small}, std::pair{PoolKind::kLarge, &pools->large}}) {
    if (!mapping || *pool != nullptr) continue;
    absl::StatusOr<Pool*> fresh = placement.MakePool(pools->use, kind);
    if (!fresh.ok()) {  // one that is made already waits for the next stream
      pools->use.order = WorkOrder::kNone;
      return fresh.status();
    }
    *pool = *fresh;
  }
  pools->retired = false;
  return pools;
}

StreamPools* CachingAllocator::Impl::ReusablePools(PoolId id) {
  const auto holds_memory = [](Pool* pool) {
    if (pool == nullptr) return true;  // its ranges came with their memory
    PoolLock lock(*pool);
    return pool->mapped() > Bytes();
  };
  for (const auto& pools : stream_pools) {
    if (!pools->retired) continue;
    if (id == kSharedPool && pools->use.order == WorkOrder::kNone) return pools.get();
    if (!holds_memory(pools->small) && !holds_memory(pools->large)) return pools.get();
  }
  return nullptr;
}

}  // namespace gpuledger
