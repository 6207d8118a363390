// The rungs of a miss over an upstream that cannot map (Capabilities::mapping): memory comes and goes as whole ranges.
//
// A stream has as many ranges as it needed, each a pool of its own, of Capabilities::usual_range at least where so much is
// left: small blocks share them. A range goes back once all of it is cached. Nothing moves from one range or stream to another, so
// more is reserved than over an upstream that maps; the equations are the same.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {
absl::StatusOr<Block*> CachingAllocator::Impl::AllocateFromWholeRanges(const Place& place, SizeClass size_class, bool last) {
  // 1. The stream's ranges, now, and with the fences that have passed since, and with what caches hold.
  if (Block* block = TakeFromWholeRanges(place, size_class)) return block;
  if (CompletePending() > 0) {
    if (Block* block = TakeFromWholeRanges(place, size_class)) return block;
  }
  ReclaimCaches(last ? nullptr : place.pools);
  if (Block* block = TakeFromWholeRanges(place, size_class)) return block;
  // 2. A new range, up to the cap.
  absl::StatusOr<Block*> bought = BuyRange(place, size_class);
  if (bought.ok() || !absl::IsResourceExhausted(bought.status()) || !last) return bought;
  // 3. Cached ranges of all streams given back, for a new one.
  SynchronizeUnordered();
  if (GiveBackRanges(Bytes(), Placement::kAnyTime)) bought = BuyRange(place, size_class);
  return bought;
}

Block* CachingAllocator::Impl::TakeFromWholeRanges(const Place& place, SizeClass size_class) {
  for (const auto& pool : placement.pools()) {
    if (&pool->use() != &place.pools->use) continue;
    if (Block* block = TakeFrom(*pool, size_class, place.cache)) return block;
  }
  return nullptr;
}

absl::StatusOr<Block*> CachingAllocator::Impl::BuyRange(const Place& place, SizeClass size_class) {
  const Bytes needed = size_class.charged().RoundUpTo(granularity);
  const Bytes held = placement.reserved();
  if (held > options.cap || needed > options.cap - held) {
    placement.set_shortage(Shortage::kCap);
    return absl::ResourceExhaustedError(fmt::format("the cap is {}", ToString(options.cap)));
  }
  absl::StatusOr<Range> range = absl::ResourceExhaustedError("");
  for (Bytes size = std::max(needed, upstream.capabilities().usual_range.RoundUpTo(granularity));;
       size = std::max(needed, (size / 2u).RoundUpTo(granularity))) {
    if (size <= options.cap - held) {
      placement.CountUpstreamCall();
      range = upstream.Reserve(size);
    }
    if (range.ok() || size == needed || !absl::IsResourceExhausted(range.status())) break;
  }
  placement.set_shortage(Shortage::kUpstream);
  if (!range.ok()) return range.status();
  if (range->size > Bin::kLongestRange) {
    upstream.Unreserve(*range).IgnoreError();
    return absl::ResourceExhaustedError("the request is longer than any range");
  }
  return TakeFrom(*placement.AdoptWholeRange(place.pools->use, *range), size_class, place.cache);
}

bool CachingAllocator::Impl::GiveBackRanges(Bytes target, uint64_t freed_before) {
  bool any = false;
  for (size_t i = placement.pools().size(); i-- > 0;) {  // the last bought first
    Pool& pool = *placement.pools()[i];
    {
      PoolLock lock(pool);
      if (pool.use().kept() || pool.spare().is_zero() || pool.spare() != pool.mapped()) continue;
      if (freed_before != Placement::kAnyTime && pool.first()->freed_at >= freed_before) continue;
    }
    // All of it is cached, and only a miss, which holds `growth`, could take some of it.
    if (placement.reserved() <= target || !placement.WaitFor(pool.use(), MaySynchronize()).ok()) continue;
    placement.CountUpstreamCall();
    if (!upstream.Unreserve(pool.range()).ok()) continue;
    placement.ForgetWholeRange(&pool);
    any = true;
  }
  return any;
}

}  // namespace gpuledger
