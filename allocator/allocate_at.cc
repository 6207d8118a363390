// A block at an address that is given: for graphs, which were captured with it.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {

Block* CachingAllocator::Impl::TakeAt(const Place& place, DevicePtr address, Bytes charged) {
  CompletePending();
  ReclaimCaches(place.pools);  // a block that a thread keeps is cached too
  for (const auto& pool : placement.pools()) {
    const Range range = pool->range();
    if (&pool->use() != &place.pools->use || address.address() < range.base.address()) continue;
    const Bytes offset = address - range.base;
    if (offset >= range.size || charged > range.size - offset) continue;
    PoolLock lock(*pool);
    Block* const block = pool->TakeAt(offset, charged);
    if (block != nullptr) Welcome(block, place.cache);
    return block;
  }
  return nullptr;
}

absl::Status CachingAllocator::AllocateAt(DevicePtr address, Bytes size, Stream stream, SiteId site, PoolId pool,
                                          Bytes room) noexcept {
  Impl& a = *impl_;
  const Bytes held = std::max(size, room);
  if (size.is_zero() || held > Impl::kLargestRequest || stream.device() != a.device || address.device() != a.device) {
    return a.BadRequest(held, stream);
  }
  const SizeClass size_class = SizeClass::For(held);
  ChargeRequest request{CurrentPayer(), size, size_class.charged(), stream.Canonical(), address, site};
  Ledger::Shard& shard = a.ledger.MyShard();
  Impl::Place place = a.FindPlace(shard, request.stream, pool);
  if (place.pools == nullptr) {
    const absl::StatusOr<Impl::Place> made = a.MakePlace(shard, request.stream, pool);
    if (!made.ok()) return made.status();
    place = *made;
  }
  Block* block = nullptr;
  {
    MutexLock lock(a.growth);
    block = address.address() % SizeClass::kGranule.count() == 0 ? a.TakeAt(place, address, size_class.charged()) : nullptr;
  }
  if (block == nullptr) {
    return absl::FailedPreconditionError(fmt::format(
        "AllocateAt: not all of the {} at {:#x} is cached memory of that stream and pool", ToString(size_class.charged()), address.address()));
  }
  bool crossed = false;
  {
    SpinHold hold(shard.mutex);
    crossed = a.HandOut(shard, block, request);
  }
  if (crossed) a.ledger.Tell(shard);
  return absl::OkStatus();
}

}  // namespace gpuledger
