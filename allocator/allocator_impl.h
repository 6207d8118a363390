// allocator/allocator_impl.h - the data behind CachingAllocator, and the rungs of its ladder.
//
// One lock guards pools, blocks and the index; the ledger has its own, always taken inside. Invariants (invariants.cc):
// every block of every pool is cached, in use, pending or unmapped; the index holds exactly the blocks in use and
// pending, and their charges are exactly the ledger's live ones; reserved is the mapped granules.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/allocator.h"
#include "pool.h"
#include "sync.h"

namespace gpuledger {

struct CachingAllocator::Impl {
  Impl(Upstream& its_upstream, AllocatorOptions its_options, RecordSink* sink)
      : upstream(its_upstream),
        granule(its_upstream.granularity()),
        mapping(its_upstream.capabilities().mapping),
        ledger(its_upstream.device(), its_upstream, sink),
        options(its_options) {}

  // Which handles Grow may map: only new ones, or also cached ones of any pool, moved.
  enum class Donors { kNo, kYes };
  // What the last miss was short of: it decides what would have helped.
  enum class Shortage { kCap, kUpstream, kAddresses };
  using Donor = std::pair<Pool*, uint64_t>;  // a granule of a pool

  // A block that was freed lately, for whoever frees it again.
  struct Freed {
    uint64_t address = 0;
    Payer payer;
    SiteId site = kNoSite;
  };

  Upstream& upstream;
  const Bytes granule;
  const bool mapping;  // Capabilities::mapping
  Ledger ledger;

  mutable Mutex mutex;
  AllocatorOptions options GPULEDGER_GUARDED_BY(mutex);
  BlockStore store GPULEDGER_GUARDED_BY(mutex);
  absl::flat_hash_map<Stream, std::unique_ptr<Pool>> pools GPULEDGER_GUARDED_BY(mutex);
  std::vector<Pool*> pool_order GPULEDGER_GUARDED_BY(mutex);  // as they were made: reports and donors do not depend on hashes
  // Of an upstream that cannot map (whole_ranges.cc): one pool a range. Those of `pools` are empty then, and in no order.
  std::vector<std::unique_ptr<Pool>> whole_pools GPULEDGER_GUARDED_BY(mutex);
  absl::flat_hash_map<uint64_t, Block*> index GPULEDGER_GUARDED_BY(mutex);  // in use and pending, by address
  std::vector<Block*> pending GPULEDGER_GUARDED_BY(mutex);
  // Handles that the upstream would not take back: they count against the cap, and are used before new ones are made.
  std::vector<HandleId> orphans GPULEDGER_GUARDED_BY(mutex);
  std::array<Freed, 256> freed GPULEDGER_GUARDED_BY(mutex);
  size_t next_freed GPULEDGER_GUARDED_BY(mutex) = 0;
  Shortage shortage GPULEDGER_GUARDED_BY(mutex) = Shortage::kUpstream;
  Bytes peak_reserved GPULEDGER_GUARDED_BY(mutex);
  uint64_t upstream_calls GPULEDGER_GUARDED_BY(mutex) = 0;

  absl::StatusOr<Pool*> PoolOf(Stream stream) GPULEDGER_REQUIRES(mutex);
  // The rest of Allocate after a miss: the ladder.
  absl::StatusOr<Block*> AllocateSlow(Pool& pool, SizeClass size_class, Bytes requested, Payer payer)
      GPULEDGER_REQUIRES(mutex);
  // The last rung: the miss goes on record, and its report into the error.
  absl::Status OutOfMemory(const Pool& pool, SizeClass size_class, Bytes requested, Payer payer, std::string_view why)
      GPULEDGER_REQUIRES(mutex);
  absl::StatusOr<Block*> Grow(Pool& pool, Bytes size, Donors donors) GPULEDGER_REQUIRES(mutex);
  // Wholly cached granules, those of `pool` first, none inside [keep, keep_end) of it.
  [[nodiscard]] std::vector<Donor> ListDonors(const Pool& pool, Bytes keep, Bytes keep_end) const GPULEDGER_REQUIRES(mutex);
  // Takes `count` handles out of these granules. A pool whose stream or memory fails is passed over; fewer than `count`
  // is kResourceExhausted, and what was taken is given back to the upstream.
  absl::StatusOr<std::vector<HandleId>> TakeDonors(const std::vector<Donor>& donors, uint64_t count) GPULEDGER_REQUIRES(mutex);
  // Gives cached handles back until reserved is at most `target`, or none is left.
  void Trim(Bytes target) GPULEDGER_REQUIRES(mutex);
  void RecordFences(Pending& block) GPULEDGER_REQUIRES(mutex);
  absl::Status WaitForStream(Stream stream) GPULEDGER_REQUIRES(mutex);
  // The same rungs where ranges come with their memory (whole_ranges.cc).
  absl::StatusOr<Block*> AllocateFromWholeRanges(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  Block* TakeFromWholeRanges(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  absl::StatusOr<Block*> BuyRange(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  // Gives wholly cached ranges back until reserved is at most `target`; true if any went.
  bool GiveBackRanges(Bytes target) GPULEDGER_REQUIRES(mutex);
  // How many granules of the pool could be given back now.
  [[nodiscard]] uint64_t SpareGranules(const Pool& pool) const GPULEDGER_REQUIRES(mutex);
  absl::StatusOr<HandleId> UnmapGranule(Pool& pool, uint64_t g) GPULEDGER_REQUIRES(mutex);
  void Release(HandleId handle) GPULEDGER_REQUIRES(mutex);
  uint64_t CompletePending() GPULEDGER_REQUIRES(mutex);
  absl::Status WaitForPending() GPULEDGER_REQUIRES(mutex);
  void Complete(Block* block) GPULEDGER_REQUIRES(mutex);

  [[nodiscard]] Bytes reserved() const GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] Totals totals() const GPULEDGER_REQUIRES(mutex);
  // The block in use that starts at `address`; null if none does.
  [[nodiscard]] Block* FindInUse(DevicePtr address) const GPULEDGER_REQUIRES(mutex);
  void ReportMisuse(DevicePtr address, std::string_view call) const GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] const Block* BlockHolding(DevicePtr address) const GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] std::string OutOfMemoryReport(const Pool& pool, Bytes requested, Payer payer, std::string_view why) const
      GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] absl::Status Check() const GPULEDGER_REQUIRES(mutex);
};

}  // namespace gpuledger
