// allocator/allocator_impl.h - the data behind CachingAllocator, and the rungs of its ladder.
//
// `mutex` guards what the front knows of blocks, the index and growth; each pool has its own, and the ledger too, always
// taken inside. Invariants (invariants.cc): the index holds exactly the taken blocks, each is in use or pending, and their
// charges are exactly the ledger's live ones; reserved is the bytes of the mapped handles.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/allocator.h"
#include "placement.h"
#include "sync.h"

namespace gpuledger {

struct CachingAllocator::Impl {
  Impl(Upstream& its_upstream, AllocatorOptions its_options, RecordSink* sink)
      : upstream(its_upstream),
        granule(its_upstream.granularity()),
        mapping(its_upstream.capabilities().mapping),
        ledger(its_upstream.device(), its_upstream, sink),
        options(its_options),
        placement(its_upstream, ledger) {}

  // The pools of a stream, each made when it is first asked for something.
  struct StreamPools {
    Pool* small = nullptr;
    Pool* large = nullptr;
  };

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
  absl::flat_hash_map<Stream, StreamPools> pools GPULEDGER_GUARDED_BY(mutex);
  Placement placement GPULEDGER_GUARDED_BY(mutex);  // owns the pools; `mutex` is its growth mutex
  absl::flat_hash_map<uint64_t, Block*> index GPULEDGER_GUARDED_BY(mutex);  // in use and pending, by address
  std::vector<Block*> pending GPULEDGER_GUARDED_BY(mutex);
  std::array<Freed, 256> freed GPULEDGER_GUARDED_BY(mutex);
  size_t next_freed GPULEDGER_GUARDED_BY(mutex) = 0;
  Shortage whole_range_shortage GPULEDGER_GUARDED_BY(mutex) = Shortage::kUpstream;

  // The pool that serves such requests of the stream. Not for an upstream that cannot map.
  absl::StatusOr<Pool*> PoolOf(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  // The stream's other pool, if there is one: at the cap, what it has cached serves too.
  [[nodiscard]] Pool* SiblingOf(const Pool& pool) const GPULEDGER_REQUIRES(mutex);
  // Null on a miss. The block may be of another pool of the stream only where whole ranges are used.
  Block* Take(Stream stream, Pool* pool, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  // The rest of Allocate after a miss: the ladder. `pool` is null for an upstream that cannot map.
  absl::StatusOr<Block*> AllocateSlow(Stream stream, Pool* pool, SizeClass size_class, Bytes requested, Payer payer)
      GPULEDGER_REQUIRES(mutex);
  // Growth (placement.h), and in the sibling's cached blocks where that is exhausted.
  absl::StatusOr<Block*> Grow(Pool& pool, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  // The last rung: the miss goes on record, and its report into the error.
  absl::Status OutOfMemory(Stream stream, SizeClass size_class, Bytes requested, Payer payer, std::string_view why)
      GPULEDGER_REQUIRES(mutex);
  // Gives cached handles, or ranges, back until reserved is at most `target`, or none is left.
  void Trim(Bytes target) GPULEDGER_REQUIRES(mutex);
  void RecordFences(Pending& block) GPULEDGER_REQUIRES(mutex);
  // The same rungs where ranges come with their memory (whole_ranges.cc).
  absl::StatusOr<Block*> AllocateFromWholeRanges(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  Block* TakeFromWholeRanges(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  absl::StatusOr<Block*> BuyRange(Stream stream, SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  // Gives wholly cached ranges back until reserved is at most `target`; true if any went.
  bool GiveBackRanges(Bytes target) GPULEDGER_REQUIRES(mutex);
  // How many bytes of the pool could be given back now.
  [[nodiscard]] Bytes Spare(const Pool& pool) const GPULEDGER_REQUIRES(mutex);
  uint64_t CompletePending() GPULEDGER_REQUIRES(mutex);
  absl::Status WaitForPending() GPULEDGER_REQUIRES(mutex);
  void Complete(Block* block) GPULEDGER_REQUIRES(mutex);

  [[nodiscard]] Totals totals() const GPULEDGER_REQUIRES(mutex);
  // The block in use that starts at `address`; null if none does.
  [[nodiscard]] Block* FindInUse(DevicePtr address) const GPULEDGER_REQUIRES(mutex);
  void ReportMisuse(DevicePtr address, std::string_view call) const GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] const Block* BlockHolding(DevicePtr address) const GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] std::string OutOfMemoryReport(Stream stream, Bytes requested, Payer payer, std::string_view why) const
      GPULEDGER_REQUIRES(mutex);
  [[nodiscard]] absl::Status Check() const GPULEDGER_REQUIRES(mutex);
};

}  // namespace gpuledger
