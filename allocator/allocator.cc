// The hot path of CachingAllocator: hand out, take back. What happens on a miss is in ladder.cc.
#include "gpuledger/allocator.h"

#include <algorithm>

#include "allocator_impl.h"
#include "fork_guard.h"

namespace gpuledger {

CachingAllocator::CachingAllocator(Upstream& upstream, AllocatorOptions options, RecordSink* sink)
    : impl_(std::make_unique<Impl>(upstream, options, sink)) {
  RegisterForFork(this);
}

CachingAllocator::Impl::Impl(Upstream& its_upstream, AllocatorOptions its_options, RecordSink* sink)
    : upstream(its_upstream),
      device(its_upstream.device()),
      granularity(its_upstream.granularity()),
      mapping(its_upstream.capabilities().mapping),
      on_misuse(its_options.on_misuse),
      device_total(its_upstream.memory_info().total),
      ledger_owned(its_upstream.device(), its_upstream, sink),
      ledger(ledger_owned.impl()),
      streams_may_vanish(its_options.streams_may_vanish),
      pending(its_upstream, its_options.streams_may_vanish),
      options(its_options),
      placement(its_upstream, ledger_owned, blocks, its_options.streams_may_vanish) {}

// ---- hand out ----------------------------------------------------------------------------------------------------------

absl::StatusOr<DevicePtr> CachingAllocator::AllocateRaw(Bytes size, Stream stream, SiteId site, PoolId pool, Bytes room) noexcept {
  Impl& a = *impl_;
  if (size.is_zero()) return DevicePtr::Null(stream.device());
  const Bytes held = std::max(size, room);
  if (held > Impl::kLargestRequest || stream.device() != a.device) [[unlikely]] return a.BadRequest(held, stream);
  const SizeClass size_class = SizeClass::For(held);
  ChargeRequest request{CurrentPayer(), size, size_class.charged(), stream.Canonical(), DevicePtr::Null(a.device), site};
  Ledger::Shard& shard = a.ledger.MyShard();
  Impl::Place place = a.FindPlace(shard, request.stream, pool);
  if (place.pools == nullptr) [[unlikely]] {
    absl::StatusOr<Impl::Place> made = a.MakePlace(shard, request.stream, pool);
    if (!made.ok()) return made.status();
    place = *made;
  }
  Block* block = nullptr;
  bool crossed = false;  // a soft cap of the owner
  bool grown = false;
  Block* left_over = nullptr;
  // 1. This very size, out of the thread's own cache.
  if (size_class.charged() <= StreamCache::kLargest && place.cache != nullptr) {
    SpinHold hold(shard.mutex);
    block = place.cache->Pop(size_class.charged());
    if (block == nullptr) [[unlikely]] {
      left_over = place.cache->Collect();  // what other threads have given back
      block = place.cache->Pop(size_class.charged());
    }
    if (block != nullptr) crossed = a.HandOut(shard, block, request);
  }
  if (left_over != nullptr) [[unlikely]] a.GiveBackList(left_over);
  if (block == nullptr) {
    // 2. A cached block of the stream's pool. (Where ranges come with their memory it has none: whole_ranges.cc.)
    if (place.pools->small != nullptr) [[likely]] {
      block = a.TakeFrom(place.pools->For(size_class.charged()), size_class, place.cache);
    }
    // 3. The ladder.
    if (block == nullptr) [[unlikely]] {
      absl::StatusOr<Block*> climbed = a.AllocateSlow(place, size_class, request);
      if (!climbed.ok()) return climbed.status();
      block = *climbed;
      grown = true;
    }
    {
      SpinHold hold(shard.mutex);
      crossed = a.HandOut(shard, block, request);
    }
    if (grown) [[unlikely]] a.TellOfReserved();  // the block is charged by now: whoever is told finds all equations true
  }
  if (crossed) [[unlikely]] a.ledger.Tell(shard);
  return request.address;
}

bool CachingAllocator::Impl::HandOut(Ledger::Shard& shard, Block* block, ChargeRequest& request) {
  request.address = DevicePtr(device, block->front.address.load(std::memory_order_relaxed));
  // The time is taken with the block in hand: it is not before that of the free that gave it back.
  block->front.charge = ledger.Debit(shard, request, upstream.now());
  block->front.state.store(FrontState::kInUse, std::memory_order_release);
  return !shard.crossings.empty();
}

Block* CachingAllocator::Impl::TakeFrom(Pool& pool, SizeClass size_class, StreamCache* home) {
  PoolLock lock(pool);
  Block* block = pool.Take(size_class);
  if (block != nullptr) Welcome(block, home);
  return block;
}

void CachingAllocator::Impl::Welcome(Block* block, StreamCache* home) {
  const uint64_t address = block->pool->address(*block).address();
  block->front.home = block->size <= StreamCache::kLargest ? home : nullptr;
  if (block->front.address.load(std::memory_order_relaxed) == address) return;
  block->front.address.store(address, std::memory_order_relaxed);
  blocks.Set(address, block);
}

// ---- take back ---------------------------------------------------------------------------------------------------------

void CachingAllocator::Free(DevicePtr address) noexcept {
  if (!address.is_null() && !TryFree(address)) [[unlikely]] impl_->ReportMisuse(address, "Free");
}

bool CachingAllocator::TryFree(DevicePtr address) noexcept {
  Impl& a = *impl_;
  Block* block = a.Claim(address, FrontState::kFreeing);
  if (block == nullptr) [[unlikely]] return false;
  Ledger::Shard& shard = a.ledger.MyShard();
  if ((block->front.uses.load(std::memory_order_relaxed) & kUsedElsewhere) != 0) [[unlikely]] {
    a.FreePending(shard, block);
    return true;
  }
  StreamCache* const home = block->front.home;
  const bool at_home = home != nullptr && &home->shard == &shard;
  {
    SpinHold hold(shard.mutex);
    a.Uncharge(shard, block);
    if (at_home && home->Push(block)) return true;
  }
  if (home == nullptr || at_home) {
    a.GiveBack(block);
  } else if (home->Return(block)) [[unlikely]] {
    a.GiveBackList(home->TakeReturned());
  }
  return true;
}

void CachingAllocator::Impl::Uncharge(Ledger::Shard& shard, Block* block) {
  const TimePoint now = upstream.now();
  Charge::Entry* const charge = block->front.charge;
  if (ThreadCaches* caches = CachesOf(shard)) {
    caches->NoteFreed({block->front.address.load(std::memory_order_relaxed), charge->payer, charge->site});
  }
  block->freed_at = now.value();
  ledger.Complete(shard, charge, now);  // may let go of the lock: until then the block has its charge, for a fork to find
  block->front.charge = nullptr;
  block->front.uses.store(0, std::memory_order_relaxed);
  block->front.state.store(FrontState::kIdle, std::memory_order_relaxed);
}

void CachingAllocator::Impl::FreePending(Ledger::Shard& shard, Block* block) {
  {
    SpinHold hold(shard.mutex);
    ledger.MakePending(shard, block->front.charge, upstream.now());
    block->front.state.store(FrontState::kPending, std::memory_order_relaxed);
  }
  pending.Add(block);
}

void CachingAllocator::Impl::GiveBack(Block* block) { block->pool->PutOrDefer(block); }

void CachingAllocator::Impl::GiveBackList(Block* list) {
  while (list != nullptr) GiveBack(std::exchange(list, list->front.next));
}

absl::StatusOr<Buffer> CachingAllocator::Allocate(Bytes size, Stream stream, SiteId site, PoolId pool) noexcept {
  absl::StatusOr<DevicePtr> block = AllocateRaw(size, stream, site, pool);
  if (!block.ok()) return block.status();
  return block->is_null() ? Buffer() : Buffer(this, *block, size);
}

// ---- buffers -----------------------------------------------------------------------------------------------------------

Buffer::Buffer(Buffer&& other) noexcept : allocator_(other.allocator_), ptr_(other.ptr_), size_(other.size_) {
  other.allocator_ = nullptr;
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Reset();
    allocator_ = std::exchange(other.allocator_, nullptr);
    ptr_ = other.ptr_;
    size_ = other.size_;
  }
  return *this;
}

void Buffer::Reset() {
  if (allocator_ != nullptr) std::exchange(allocator_, nullptr)->Free(ptr_);
}

}  // namespace gpuledger
