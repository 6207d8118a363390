// The hot path of CachingAllocator: hand out, take back. What happens on a miss is in ladder.cc.
#include "gpuledger/allocator.h"

#include <fmt/format.h>

#include "allocator_impl.h"
#include "fork_guard.h"

namespace gpuledger {

CachingAllocator::CachingAllocator(Upstream& upstream, AllocatorOptions options, RecordSink* sink)
    : impl_(std::make_unique<Impl>(upstream, options, sink)) {
  RegisterForFork(this);
}

// ---- hand out ----------------------------------------------------------------------------------------------------------

absl::StatusOr<DevicePtr> CachingAllocator::AllocateRaw(Bytes size, Stream stream, SiteId site, PoolId pool) noexcept {
  Impl& a = *impl_;
  if (size.is_zero()) return DevicePtr::Null(stream.device());
  if (size > Impl::kLargestRequest || stream.device() != a.device) [[unlikely]] return a.BadRequest(size, stream);
  const SizeClass size_class = SizeClass::For(size);
  ChargeRequest request{CurrentPayer(), size, size_class.charged(), stream.Canonical(), DevicePtr::Null(a.device), site};
  const TimePoint now = a.upstream.now();
  Ledger::Shard& shard = a.ledger_impl.MyShard();

  StreamCache* cache = Impl::CachesOf(shard)->Find(request.stream, pool);
  if (cache == nullptr) [[unlikely]] {
    absl::StatusOr<StreamCache*> made = a.MakeCache(shard, request.stream, pool);
    if (!made.ok()) return made.status();
    cache = *made;
  }
  // 1. This very size, from the thread's own cache.
  if (size_class.charged() <= StreamCache::kLargest) {
    SpinLockHolder lock(shard.mutex);
    if (Block* block = cache->Pop(size_class.charged())) return a.HandOut(shard, block, request, now);
  }
  // 2. A free block of the stream's pool.  3. The ladder.
  Block* block = a.TakeFromPool(*cache, size_class);
  if (block == nullptr) [[unlikely]] {
    absl::StatusOr<Block*> climbed = a.AllocateSlow(*cache, size_class, request);
    if (!climbed.ok()) return climbed.status();
    block = *climbed;
  }
  SpinLockHolder lock(shard.mutex);
  return a.HandOut(shard, block, request, now);
}

DevicePtr CachingAllocator::Impl::HandOut(Ledger::Shard& shard, Block* block, ChargeRequest& request, TimePoint now) {
  request.address = DevicePtr(device, block->address.load(std::memory_order_relaxed));
  block->charge = ledger_impl.Debit(shard, request, now);
  block->front.store(FrontState::kInUse, std::memory_order_release);
  return request.address;
}

Block* CachingAllocator::Impl::TakeFromPool(StreamCache& cache, SizeClass size_class) {
  Pool& pool = cache.pools->For(size_class.charged());
  PoolLock lock(pool);
  for (Block* block = cache.TakeReturned(); block != nullptr;) pool.PutOrForward(std::exchange(block, block->next));
  Block* block = pool.Take(size_class);
  if (block != nullptr) Adopt(block, cache, size_class);
  return block;
}

// ---- take back ---------------------------------------------------------------------------------------------------------

void CachingAllocator::Free(DevicePtr address) noexcept {
  if (address.is_null()) return;
  Impl& a = *impl_;
  Block* block = a.blocks.Find(address.address());
  if (block == nullptr || !Impl::Claim(block, address, FrontState::kFreeing)) [[unlikely]] return a.ReportMisuse(address, "Free");
  const TimePoint now = a.upstream.now();
  Ledger::Shard& shard = a.ledger_impl.MyShard();
  if (block->used_elsewhere.load(std::memory_order_relaxed)) [[unlikely]] return a.FreePending(shard, block, now);

  StreamCache* const home = block->home;
  {
    SpinLockHolder lock(shard.mutex);
    a.Settle(shard, block, now);
    if (home != nullptr && &home->shard == &shard && home->Push(block, block->size)) return;
  }
  if (home != nullptr && &home->shard != &shard) return home->Return(block);
  a.GiveBack(block);
}
