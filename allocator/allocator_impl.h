// allocator/allocator_impl.h - the data behind CachingAllocator, and the steps of its ladder.
//
//   hit     the thread's cache (thread_cache.h), or the stream's pool (pool.h), each under its own lock
//   miss    the ladder, under `growth`: one miss at a time
//
// Lock order: growth -> pending -> pool -> the ledger's (per-thread objects -> central -> shards) -> the upstream's. Two
// pools are locked at once only under growth. Nothing is held while callbacks run or pending blocks are waited for. (The list
// of callbacks has a lock of its own, taken with nothing else held, but for a fork: then before growth.)
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "address_map.h"
#include "callbacks.h"
#include "gpuledger/allocator.h"
#include "ledger_impl.h"
#include "pending_blocks.h"
#include "placement.h"
#include "stream_pools.h"
#include "sync.h"
#include "thread_cache.h"

namespace gpuledger {

struct CachingAllocator::Impl {
  static constexpr Bytes kLargestRequest = Bytes(uint64_t{1} << 62);

  Impl(Upstream& its_upstream, AllocatorOptions its_options, RecordSink* sink);

  Upstream& upstream;
  const DeviceId device;
  const Bytes granularity;
  const bool mapping;  // Capabilities::mapping
  const OnMisuse on_misuse;
  const Bytes device_total;
  // A forked child of an upstream that does not survive forks: nothing is handed out any more.
  std::atomic<bool> refuses = false;

  AddressMap blocks;  // outlives the ledger, whose shards hold the caches
  Ledger ledger_owned;
  Ledger::Impl& ledger;
  const bool streams_may_vanish;
  PendingBlocks pending;
  Callbacks callbacks;

  mutable Mutex growth;
  AllocatorOptions options GPULEDGER_GUARDED_BY(growth);
  Placement placement GPULEDGER_GUARDED_BY(growth);
  std::vector<std::unique_ptr<StreamPools>> stream_pools GPULEDGER_GUARDED_BY(growth);  // as they were made
  uint64_t next_pool_id GPULEDGER_GUARDED_BY(growth) = 1;
  std::vector<PoolId> private_pools GPULEDGER_GUARDED_BY(growth);  // not yet released

  // ---- hits (allocator.cc) ----

  static ThreadCaches* CachesOf(Ledger::Shard& shard) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    return static_cast<ThreadCaches*>(shard.extension.get());  // set by this thread, and read by it
  }
  // The pools of a stream, and the thread's cache for them; null for a thread that is over.
  struct Place {
    StreamPools* pools = nullptr;
    StreamCache* cache = nullptr;
  };
  Place FindPlace(Ledger::Shard& shard, Stream stream, PoolId pool) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    ThreadCaches* const caches = CachesOf(shard);
    StreamCache* const cache = caches == nullptr || shard.late ? nullptr : caches->Find(stream, pool);
    return {cache == nullptr ? nullptr : cache->pools, cache};
  }
  [[gnu::noinline, gnu::cold]] absl::StatusOr<Place> MakePlace(Ledger::Shard& shard, Stream stream, PoolId pool)
      GPULEDGER_EXCLUDES(growth);
  // Charges the block, whose address goes into the request; true if a soft cap was crossed (Ledger::Impl::Tell).
  bool HandOut(Ledger::Shard& shard, Block* block, ChargeRequest& request) GPULEDGER_REQUIRES(shard.mutex);
  // A cached block of the pool, with an address and a home; null on a miss.
  Block* TakeFrom(Pool& pool, SizeClass size_class, StreamCache* home);
  // A block fresh from its pool gets an address, and a home.
  void Welcome(Block* block, StreamCache* home);
  // The ledger's part of a free, and its record.
  void Uncharge(Ledger::Shard& shard, Block* block) GPULEDGER_REQUIRES(shard.mutex);
  void FreePending(Ledger::Shard& shard, Block* block);
  // Calls `visit(place, size)` with all places where addresses of blocks are noted, and `live` with each block in use.
  // Between CachingAllocator::LockForFork and UnlockAfterFork.
  void VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit, absl::FunctionRef<void(const Charge::Entry&)> live) const;
  template <class Visit>
  void VisitRanges(Visit visit) const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    for (const auto& pool : placement.pools()) visit(pool->range());
  }
  // Back to the pool, without waiting for its lock.
  void GiveBack(Block* block);
  void GiveBackList(Block* list);

  // ---- blocks in use (blocks_in_use.cc) ----

  // Takes the block at `address` out of *in use* into `to`; null if none in use starts there.
  Block* Claim(DevicePtr address, FrontState to) const;
  // The blocks in use of these pools outlive their stream or private pool. `fenced`: work may still be queued for them on
  // their own stream, which by then is no longer that of their pool; so they are freed as if another stream used them.
  void MarkOutliving(const StreamPools& pools, bool fenced) GPULEDGER_REQUIRES(growth);
  void ReportMisuse(DevicePtr address, std::string_view call);
  absl::Status BadRequest(Bytes size, Stream stream) const;
  // The taken block that holds this address; null if there is none.
  Block* TakenBlockHolding(DevicePtr address) const GPULEDGER_REQUIRES(growth);

  // ---- misses (ladder.cc) ----

  [[gnu::noinline, gnu::cold]] absl::StatusOr<Block*> AllocateSlow(const Place& place, SizeClass size_class, const ChargeRequest& request)
      GPULEDGER_EXCLUDES(growth);
  // Rungs 1 to 3, which wait for nobody; `last`: with every thread's caches, and with rungs 4 and 5.
  absl::StatusOr<Block*> Climb(const Place& place, SizeClass size_class, bool last) GPULEDGER_REQUIRES(growth);
  absl::StatusOr<Block*> Grow(const Place& place, SizeClass size_class) GPULEDGER_REQUIRES(growth);
  // Of the device, every thread's changes in it.
  [[nodiscard]] Usage ExactUsage() const;
  absl::StatusOr<StreamPools*> PoolsOf(StreamKey key, PoolId id) GPULEDGER_REQUIRES(growth);
  [[nodiscard]] absl::Status Refusal() const;  // what a forked child is told
  // Calls those who asked to be told near the cap.
  void TellOfReserved() GPULEDGER_EXCLUDES(growth);
  // Of a stream that is gone and waited for, or of anybody who is gone and left no memory there, only addresses: those will do for a
  // private pool too, which takes nobody's memory. Null if there are none.
  StreamPools* ReusablePools(PoolId id) GPULEDGER_REQUIRES(growth);
  absl::Status OutOfMemory(const Place& place, SizeClass size_class, const ChargeRequest& request, std::string_view why)
      GPULEDGER_REQUIRES(growth);
  // Empties thread caches into the pools: those of `pools` (null: of all) and, of the rest, those idle since the last look.
  void ReclaimCaches(const StreamPools* pools) GPULEDGER_REQUIRES(growth);
  // Blocks whose fences have passed go back to their pools; how many.
  uint64_t CompletePending() GPULEDGER_EXCLUDES(pending.mutex());
  uint64_t Complete(const std::vector<Block*>& passed) GPULEDGER_EXCLUDES(pending.mutex());
  absl::Status WaitForPending() GPULEDGER_EXCLUDES(growth);

  // ---- at an address (allocate_at.cc) ----

  Block* TakeAt(const Place& place, DevicePtr address, Bytes charged) GPULEDGER_REQUIRES(growth);

  // ---- giving back (release.cc) ----

  Bytes Release(Bytes target, uint64_t freed_before) GPULEDGER_REQUIRES(growth);
  // Pools whose work no fence can tell of (released private ones, those of a thread that is gone) donate from here on, if
  // the device can be synchronised now.
  void SynchronizeUnordered() GPULEDGER_REQUIRES(growth);
  // Not while a stream is captured: to synchronise the device would break that.
  [[nodiscard]] bool MaySynchronize() const GPULEDGER_REQUIRES(growth);
  // Closes the books on pending blocks that cannot be waited for. Their memory stays mapped, and is left to the upstream.
  void AbandonPending() GPULEDGER_EXCLUDES(growth);
  void RetireCaches(const StreamPools& pools) GPULEDGER_REQUIRES(growth);
  bool ThreadIsGone(ThreadId thread);

  // ---- where ranges come with their memory (whole_ranges.cc) ----

  absl::StatusOr<Block*> AllocateFromWholeRanges(const Place& place, SizeClass size_class, bool last) GPULEDGER_REQUIRES(growth);
  Block* TakeFromWholeRanges(const Place& place, SizeClass size_class) GPULEDGER_REQUIRES(growth);
  absl::StatusOr<Block*> BuyRange(const Place& place, SizeClass size_class) GPULEDGER_REQUIRES(growth);
  // Gives wholly cached ranges back, those free since before `freed_before`, until reserved is at most `target`; true if any went.
  bool GiveBackRanges(Bytes target, uint64_t freed_before) GPULEDGER_REQUIRES(growth);

  // ---- what it says of itself (invariants.cc, oom_report.cc) ----

  [[nodiscard]] Totals TotalsNow() const GPULEDGER_REQUIRES(growth);
  [[nodiscard]] Totals TotalsWith(const Usage& usage) const GPULEDGER_REQUIRES(growth);
  [[nodiscard]] std::string OutOfMemoryReport(const Place& place, const ChargeRequest& request, std::string_view why) const
      GPULEDGER_REQUIRES(growth);
  [[nodiscard]] absl::Status Check() GPULEDGER_REQUIRES(growth);
};

}  // namespace gpuledger
