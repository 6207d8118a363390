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
  for (Pool* pool : pool_order) {
    if (pool->stream() != stream) continue;
    if (Block* block = pool->Take(size_class)) return block;
  }
  return nullptr;
}

absl::StatusOr<Block*> CachingAllocator::Impl::BuyRange(Stream stream, SizeClass size_class) {
  const Bytes needed = size_class.charged().RoundUpTo(granule);
  const Bytes held = reserved();
  shortage = Shortage::kCap;
  if (held > options.cap || needed > options.cap - held) {
    return absl::ResourceExhaustedError(fmt::format("the cap is {}", ToString(options.cap)));
  }
  absl::StatusOr<Range> range = absl::ResourceExhaustedError("");
  for (Bytes size = std::max(needed, kUsualRange.RoundUpTo(granule));;
       size = std::max(needed, (size / 2u).RoundUpTo(granule))) {
    if (size <= options.cap - held) {
      ++upstream_calls;
      range = upstream.Reserve(size);
    }
    if (range.ok() || size == needed || !absl::IsResourceExhausted(range.status())) break;
  }
  shortage = Shortage::kUpstream;
  if (!range.ok()) return range.status();

  Pool* pool = whole_pools.emplace_back(std::make_unique<Pool>(stream, *range, granule, store)).get();
  pool_order.push_back(pool);
  for (uint64_t g = 0; g < range->size / granule; ++g) pool->NoteMapped(g, HandleId(g + 1));  // no handle has this id
  peak_reserved = std::max(peak_reserved, reserved());
  Record record;
  record.kind = RecordKind::kMapped;
  record.charged = range->size;
  record.address = range->base.address();
  record.stream = stream.raw();
  ledger.Note(record);
  return pool->Take(size_class);
}

bool CachingAllocator::Impl::GiveBackRanges(Bytes target) {
  const size_t before = whole_pools.size();
  std::erase_if(whole_pools, [&](const std::unique_ptr<Pool>& pool) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    if (SpareGranules(*pool) == 0 || reserved() <= target || !WaitForStream(pool->stream()).ok()) return false;
    const Range range = pool->range();
    ++upstream_calls;
    if (!upstream.Unreserve(range).ok()) return false;
    for (uint64_t g = pool->mapped_granules(); g > 0; --g) pool->NoteUnmapped(g - 1);
    std::erase(pool_order, pool.get());
    Record record;
    record.kind = RecordKind::kUnmapped;
    record.charged = range.size;
    record.address = range.base.address();
    record.stream = pool->stream().raw();
    ledger.Note(record);
    return true;
  });
  return whole_pools.size() < before;
}

uint64_t CachingAllocator::Impl::SpareGranules(const Pool& pool) const {
  const uint64_t spare = pool.DonorGranules(Bytes(), Bytes()).size();
  return mapping || spare == pool.mapped_granules() ? spare : 0;
}

}  // namespace gpuledger
