// The equations of the device (types.h), asserted in one place; and what is read of the whole allocator at once.
#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {
namespace {

absl::Status Wrong(std::string what) { return absl::InternalError(std::move(what)); }

}  // namespace

absl::Status CachingAllocator::CheckInvariants() const {
  MutexLock lock(impl_->growth);
  return impl_->Check();
}

absl::Status CachingAllocator::Impl::Check() {
  if (absl::Status s = ledger_owned.CheckInvariants(); !s.ok()) return s;
  if (absl::Status s = placement.Check(); !s.ok()) return s;

  // Every taken block is charged, or in exactly one list.
  absl::flat_hash_map<const Block*, int> listed;
  const auto note = [&](const Block* list) {
    for (const Block* b = list; b != nullptr; b = b->front.next) ++listed[b];
  };
  absl::Status bad_cache;
  ledger.ForEachShard([&](Ledger::Shard& shard, bool) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    const ThreadCaches* caches = CachesOf(shard);
    if (caches == nullptr) return;
    for (const auto& cache : caches->all()) {
      note(cache->returned.load());
      uint64_t bytes = 0;
      for (size_t i = 0; i < StreamCache::kSizes; ++i) {
        size_t count = 0;
        for (const Block* b = cache->lists[i]; b != nullptr; b = b->front.next, ++count) {
          ++listed[b];
          bytes += b->size.count();
          if (StreamCache::Index(b->size) != i) bad_cache = Wrong("a thread's cache holds a block in the list of another size");
          if (&b->pool->use() != &cache->pools->use) bad_cache = Wrong("a thread's cache holds a block of another stream");
        }
        if (count != cache->counts[i]) bad_cache = Wrong("a thread's cache has counted wrongly");
      }
      const bool wrong_bytes = bytes != cache->bytes || bytes > StreamCache::kInAll.count();
      if (wrong_bytes) bad_cache = Wrong("a thread's cache holds other bytes than it says");
    }
  });
  if (!bad_cache.ok()) return bad_cache;
  for (const auto& pool : placement.pools()) note(pool->deferred());

  Bytes in_use, pending_bytes, cached;
  size_t pending_blocks = 0, charged_blocks = 0, listed_blocks = 0;
  for (const auto& pool : placement.pools()) {
    MutexLock lock(pool->mutex);
    for (const Block* b = pool->first(); b != nullptr; b = b->right) {
      if (b->cached()) cached += b->size;
      if (!b->taken()) continue;
      const Charge::Entry* const charge = b->front.charge;
      const DevicePtr address = pool->address(*b);
      if (blocks.Find(address.address()) != b || b->front.address.load() != address.address()) {
        return Wrong("a taken block is not found by its address");
      }
      if (charge == nullptr) {
        cached += b->size;
        ++listed_blocks;
        const auto in_list = listed.find(b);
        if (in_list == listed.end() || in_list->second != 1) {
          return Wrong(fmt::format("the block at {:#x} is in no list, or in two", address.address()));
        }
        continue;
      }
      ++charged_blocks;
      const bool is_pending = b->front.state.load() == FrontState::kPending;
      (is_pending ? pending_bytes : in_use) += b->size;
      pending_blocks += is_pending;
      const LiveAllocation live = charge->info();
      if (live.charged != b->size || live.address != address || live.pending != is_pending) {
        return Wrong(fmt::format("the block at {:#x} and its charge disagree", address.address()));
      }
    }
  }
  if (listed.size() != listed_blocks) return Wrong("a list holds a block that is not taken");
  // Sets, not only totals: as many charges as charged blocks, each found from its block above.
  if (pending.size() != pending_blocks) return Wrong("the list of pending blocks is not that of the pools");
  const Usage usage = ExactUsage();
  if (usage.count + usage.pending_count != charged_blocks) return Wrong("live charges and charged blocks differ in number");
  if (usage.in_use != in_use || usage.pending != pending_bytes) {
    return Wrong(fmt::format("in_use {} and pending {} of the ledger; the blocks sum to {} and {}", ToString(usage.in_use),
                             ToString(usage.pending), ToString(in_use), ToString(pending_bytes)));
  }
  const Bytes reserved = placement.reserved();
  if (reserved != in_use + pending_bytes + cached) {
    return Wrong(fmt::format("reserved {} is not in_use {} + pending {} + cached {}", ToString(reserved), ToString(in_use),
                             ToString(pending_bytes), ToString(cached)));
  }
  return absl::OkStatus();
}

// ---- what it says of itself --------------------------------------------------------------------------------------------------

Totals CachingAllocator::Impl::TotalsNow() const { return TotalsWith(ExactUsage()); }

Totals CachingAllocator::Impl::TotalsWith(const Usage& usage) const {
  Totals t;
  t.reserved = placement.reserved();
  t.in_use = usage.in_use;
  t.pending = usage.pending;
  t.cached = t.reserved - t.in_use - t.pending;
  t.cap = options.cap;
  t.peak_reserved = placement.peak_reserved();
  t.upstream_calls = placement.upstream_calls();
  return t;
}

Totals CachingAllocator::totals() const {
  MutexLock lock(impl_->growth);
  return impl_->TotalsNow();
}

Bytes CachingAllocator::reserved() const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { return impl_->placement.reserved(); }

Upstream& CachingAllocator::upstream() const { return impl_->upstream; }
Ledger& CachingAllocator::ledger() { return impl_->ledger_owned; }
const Ledger& CachingAllocator::ledger() const { return impl_->ledger_owned; }

std::vector<SegmentInfo> CachingAllocator::segments() const {
  Impl& a = *impl_;
  std::vector<SegmentInfo> segments;
  MutexLock lock(a.growth);
  for (const auto& pool : a.placement.pools()) {
    SegmentInfo segment{pool->range(), pool->stream(), pool->use().id, pool->kind() == PoolKind::kSmall, {}};
    MutexLock pool_lock(pool->mutex);
    const AllShardsHeld held(a.ledger_owned);
    for (const Block* b = pool->first(); b != nullptr; b = b->right) {
      BlockInfo info{pool->address(*b), b->size, BlockState::kCached, {}};
      if (b->unmapped() || b->space == Space::kDead) info.state = BlockState::kUnmapped;
      if (const Charge::Entry* charge = b->taken() ? b->front.charge : nullptr) {
        info.charge.push_back(charge->info());
        info.state = info.charge[0].pending ? BlockState::kPending : BlockState::kInUse;
      }
      segment.blocks.push_back(std::move(info));
    }
    segments.push_back(std::move(segment));
  }
  return segments;
}

}  // namespace gpuledger
