// The cold half of CachingAllocator: what happens on a miss, rung by rung, and giving memory back.
#include <fmt/format.h>

#include "allocator_impl.h"
#include "fork_guard.h"

namespace gpuledger {
namespace {

std::string_view Text(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

}  // namespace

absl::StatusOr<Pool*> CachingAllocator::Impl::PoolOf(Stream stream, SizeClass size_class) {
  const bool is_small = size_class.charged() <= Pool::kLargestSmall;
  StreamPools& its = pools[stream];
  Pool*& pool = is_small ? its.small : its.large;
  if (pool != nullptr) return pool;
  const absl::StatusOr<Pool*> made = placement.MakePool(stream, is_small ? PoolKind::kSmall : PoolKind::kLarge);
  if (made.ok()) pool = *made;
  return made;
}

Pool* CachingAllocator::Impl::SiblingOf(const Pool& pool) const {
  const auto its = pools.find(pool.stream());
  if (its == pools.end()) return nullptr;
  return pool.kind() == PoolKind::kSmall ? its->second.large : its->second.small;
}

Block* CachingAllocator::Impl::Take(Stream stream, Pool* pool, SizeClass size_class) {
  if (pool == nullptr) return TakeFromWholeRanges(stream, size_class);
  MutexLock lock(pool->mutex);
  return pool->Take(size_class);
}

[[gnu::noinline, gnu::cold]] absl::StatusOr<Block*> CachingAllocator::Impl::AllocateSlow(Stream stream, Pool* pool, SizeClass size_class,
                                                                                         Bytes requested, Payer payer) {
  if (pool == nullptr) {
    absl::StatusOr<Block*> block = AllocateFromWholeRanges(stream, size_class);
    if (block.ok() || !absl::IsResourceExhausted(block.status())) return block;
    return OutOfMemory(stream, size_class, requested, payer, Text(block.status()));
  }
  // 1. Fences that have passed since.
  if (CompletePending() > 0) {
    if (Block* block = Take(stream, pool, size_class)) return block;
  }
  // 2. New handles and donors, up to the cap.
  absl::StatusOr<Block*> grown = Grow(*pool, size_class);
  if (grown.ok() || !absl::IsResourceExhausted(grown.status())) return grown;
  // 3. Pending work, waited for; then everything once more.
  if (!pending.empty()) {
    WaitForPending().IgnoreError();  // whatever it could wait for is cached now
    if (Block* block = Take(stream, pool, size_class)) return block;
    grown = Grow(*pool, size_class);
    if (grown.ok() || !absl::IsResourceExhausted(grown.status())) return grown;
  }
  // 4. The report.
  return OutOfMemory(stream, size_class, requested, payer, Text(grown.status()));
}

absl::StatusOr<Block*> CachingAllocator::Impl::Grow(Pool& pool, SizeClass size_class) {
  const Usage usage = ledger.usage();
  absl::StatusOr<Block*> block = placement.Grow(pool, size_class, usage.in_use + usage.pending, usage.peak, options.cap);
  if (block.ok() || !absl::IsResourceExhausted(block.status())) return block;
  if (Pool* sibling = SiblingOf(pool)) {
    if (Block* found = Take(sibling->stream(), sibling, size_class)) return found;
  }
  return block;
}

absl::Status CachingAllocator::Impl::OutOfMemory(Stream stream, SizeClass size_class, Bytes requested, Payer payer, std::string_view why) {
  Record record;
  record.kind = RecordKind::kOutOfMemory;
  record.requested = requested;
  record.charged = size_class.charged();
  record.stream = stream.raw();
  record.owner = payer.owner;
  record.role = payer.role;
  ledger.Note(record);
  return absl::ResourceExhaustedError(OutOfMemoryReport(stream, requested, payer, why));
}

void CachingAllocator::Impl::Trim(Bytes target) {
  if (mapping) {
    placement.Trim(target);
  } else {
    GiveBackRanges(target);
  }
}

Bytes CachingAllocator::ReleaseCached() {
  Impl& a = *impl_;
  MutexLock lock(a.mutex);
  a.CompletePending();
  const Bytes before = a.placement.reserved() + a.placement.orphaned();
  a.Trim(Bytes());
  return before - (a.placement.reserved() + a.placement.orphaned());
}

CachingAllocator::~CachingAllocator() {
  UnregisterForFork(this);
  Settle().IgnoreError();
  for (const LiveAllocation& left : ledger().live()) {
    if (!left.pending) {
      Die(fmt::format("the allocator of device {} ends while a block of {} is in use, owner {} [{}]", ledger().device().value(),
                      ToString(left.charged), OwnerName(left.payer.owner), RoleName(left.payer.role)));
    }
  }
  ReleaseCached();
  MutexLock lock(impl_->mutex);
  impl_->placement.Unreserve();
}

}  // namespace gpuledger
