// The rungs of a miss over an upstream that cannot map (Capabilities::mapping): memory comes and goes as whole ranges.
//
// A stream has as many ranges as it needed, each a pool of its own, of 32 MiB at least where so much is left: small
// blocks share them. A range goes back once all of it is cached. Nothing moves from one range or stream to another, so
// more is reserved than over an upstream that maps; the equations are the same.
#include <fmt/format.h>

#include <algorithm>

#include "allocator_impl.h"

namespace gpuledger {
namespace {

constexpr Bytes kUsualRange = Bytes(uint64_t{32} << 20);

}  // namespace

absl::StatusOr<Block*> CachingAllocator::Impl::AllocateFromWholeRanges(Stream stream, SizeClass size_class) {
  // 1. The stream's ranges, now and with the fences that have passed since.
  if (Block* block = TakeFromWholeRanges(stream, size_class)) return block;
  if (CompletePending() > 0) {
    if (Block* block = TakeFromWholeRanges(stream, size_class)) return block;
  }
  // 2. A new range, up to the cap.
  absl::StatusOr<Block*> bought = BuyRange(stream, size_class);
  if (bought.ok() || !absl::IsResourceExhausted(bought.status())) return bought;
  // 3. Cached ranges of all streams given back, for a new one.
  if (GiveBackRanges(Bytes())) bought = BuyRange(stream, size_class);
  if (bought.ok() || !absl::IsResourceExhausted(bought.status()) || pending.empty()) return bought;
  // 4. Pending work, waited for; then everything once more.
  WaitForPending().IgnoreError();  // whatever it could wait for is cached now
  if (Block* block = TakeFromWholeRanges(stream, size_class)) return block;
  GiveBackRanges(Bytes());
  return BuyRange(stream, size_class);
}

Block* CachingAllocator::Impl::TakeFromWholeRanges(Stream stream, SizeClass size_class) {
  for (const std::unique_ptr<Pool>& pool : placement.pools()) {
    if (pool->stream() != stream) continue;
    MutexLock lock(pool->mutex);
    if (Block* block = pool->Take(size_class)) return block;
  }
  return nullptr;
}

absl::StatusOr<Block*> CachingAllocator::Impl::BuyRange(Stream stream, SizeClass size_class) {
  const Bytes needed = size_class.charged().RoundUpTo(granule);
  const Bytes held = placement.reserved();
  whole_range_shortage = Shortage::kCap;
  if (held > options.cap || needed > options.cap - held) {
    return absl::ResourceExhaustedError(fmt::format("the cap is {}", ToString(options.cap)));
  }
  absl::StatusOr<Range> range = absl::ResourceExhaustedError("");
  for (Bytes size = std::max(needed, kUsualRange.RoundUpTo(granule));;
       size = std::max(needed, (size / 2u).RoundUpTo(granule))) {
    if (size <= options.cap - held) {
      placement.CountUpstreamCall();
      range = upstream.Reserve(size);
    }
    if (range.ok() || size == needed || !absl::IsResourceExhausted(range.status())) break;
  }
  whole_range_shortage = Shortage::kUpstream;
  if (!range.ok()) return range.status();

  if (range->size > Bin::kLongestRange) {
    upstream.Unreserve(*range).IgnoreError();
    return absl::ResourceExhaustedError("the request is longer than any range");
  }
  Pool* pool = placement.AdoptWholeRange(stream, *range);
  MutexLock lock(pool->mutex);
  return pool->Take(size_class);
}

bool CachingAllocator::Impl::GiveBackRanges(Bytes target) {
  std::vector<Pool*> spare;
  for (const std::unique_ptr<Pool>& pool : placement.pools()) {
    if (!Spare(*pool).is_zero()) spare.push_back(pool.get());
  }
  bool any = false;
  for (Pool* pool : spare) {
    if (placement.reserved() <= target) break;
    if (!placement.WaitForStream(pool->stream()).ok()) continue;
    placement.CountUpstreamCall();
    if (!upstream.Unreserve(pool->range()).ok()) continue;
    placement.ForgetWholeRange(pool);
    any = true;
  }
  return any;
}

Bytes CachingAllocator::Impl::Spare(const Pool& pool) const {
  MutexLock lock(pool.mutex);
  return pool.spare();
}

}  // namespace gpuledger
