// allocator/placement.h - where memory comes from on a miss: windows, handles, donors (README.md, "Placement").
//
// A miss looks for the position in its pool that needs the fewest unmapped bytes. New handles fill it while reserved stays
// within 1.5 % of the most that was ever live (the gate); the rest comes from donors: handles of any pool whose every byte
// is cached. A donor is mapped at its new address while it still is at its old one. Its old address is dead from then on,
// and is unmapped once a fence recorded on the donor's stream has passed; another stream is made to wait for that fence
// before it uses the memory. Only when donors run out is the gate passed, up to the cap.
// Where streams take memory from each other all the time, moving costs more than it saves: when it has taken more than
// half of the time lately, the gate opens wider, and closes again bit by bit once it has not.
//
// Not thread-safe: the caller holds the allocator's growth mutex in every call (but reserved()), and no pool's. Pools are
// locked here. Upstream calls are made with the requester's pool locked, so others on its stream wait; other streams do not.
#pragma once

#include <atomic>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "address_map.h"
#include "gpuledger/ledger.h"
#include "gpuledger/upstream.h"
#include "plan.h"
#include "pool.h"

namespace gpuledger {

// What a miss was short of: it decides what would have helped.
enum class Shortage : uint8_t { kCap, kUpstream, kAddresses };

class Placement {
 public:
  // How much more than the most ever live may be reserved before donors are asked: 1.5 %.
  static constexpr uint64_t kSlackPermille = 15;
  // At most, where donors would move all the time.
  static constexpr uint64_t kMostSlackPermille = 1000;

  // For Trim: whenever it was freed.
  static constexpr uint64_t kAnyTime = std::numeric_limits<uint64_t>::max();

  // `ledger` gets the records of what is mapped and unmapped, and `blocks` is made ready for what is mapped.
  // `streams_may_vanish`: see AllocatorOptions.
  Placement(Upstream& upstream, Ledger& ledger, AddressMap& blocks, bool streams_may_vanish = false);

  // A new pool with its own range, all open end. kResourceExhausted if there are no addresses for it.
  absl::StatusOr<Pool*> MakePool(const StreamUse& use, PoolKind kind);
  // A pool whose range came with its memory (Capabilities::mapping is false). Counts as reserved. And its end, once the
  // upstream has taken the range back.
  Pool* AdoptWholeRange(const StreamUse& use, Range range);
  void ForgetWholeRange(Pool* pool);
  // In the order in which they were made.
  [[nodiscard]] const std::vector<std::unique_ptr<Pool>>& pools() const { return pools_; }

  // A taken block of `pool`, out of new handles and donors. `live` is what is in use and pending now, `peak` the most that
  // was ever in use. Errors: kResourceExhausted (shortage() says of what), or the upstream's own; blocks that are taken are
  // untouched, and what was mapped on the way is cached. Waits for work of streams only where the upstream cannot alias, a
  // stream cannot be made to wait, or the pool receives no donors and others must give their memory back for it.
  absl::StatusOr<Block*> Grow(Pool& pool, SizeClass size_class, Bytes live, Bytes peak, Bytes cap);
  [[nodiscard]] Shortage shortage() const { return shortage_; }
  void set_shortage(Shortage shortage) { shortage_ = shortage; }

  // Unmaps dead addresses whose fence has passed. Never waits.
  void Collect();
  // Gives wholly cached handles back until reserved is at most `target`, the longest free first, and of them only those
  // free since before `freed_before`; also handles that the upstream would not take back before. Waits for the work queued
  // on their streams. With `may_synchronise`, what was queued on streams that nobody here can record a fence on, another
  // thread's per-thread stream, is waited for by synchronising the device, if the others do not suffice.
  void Trim(Bytes target, uint64_t freed_before = kAnyTime, bool may_synchronise = false);
  // Waits for all fences and unmaps all dead addresses; then the ranges go back. For the destructor, after Trim.
  void Unreserve();
  // Waits for what was queued on the memory of these pools, by synchronising the device if it may and must. Errors: those
  // of the fence, or that nobody here can record one.
  absl::Status WaitFor(const StreamUse& use, bool may_synchronise = false);

  // Bytes of the handles that are mapped, each once. Any thread, no lock.
  [[nodiscard]] Bytes reserved() const { return Bytes(reserved_.load(std::memory_order_relaxed)); }
  [[nodiscard]] Bytes peak_reserved() const { return Bytes(peak_reserved_.load(std::memory_order_relaxed)); }
  // Bytes of handles that hold nothing, because the upstream would not take them back. They count against the cap.
  [[nodiscard]] Bytes orphaned() const { return orphaned_; }
  [[nodiscard]] uint64_t upstream_calls() const { return upstream_calls_.load(std::memory_order_relaxed); }
  void CountUpstreamCall() { upstream_calls_.fetch_add(1, std::memory_order_relaxed); }

  // The structure of each pool, and the books: reserved is what the pools hold, and dead blocks are those listed.
  [[nodiscard]] absl::Status Check() const;

 private:
  // An old mapping that waits for its fence. A fence of no dead block is only waiting to be dropped.
  struct Dead {
    Block* block;
    Handle handle;
    std::optional<FenceId> fence;  // none: it has passed, and the unmapping failed then
  };
  // A donor of a plan on its way: out of its pool, not yet at its new address.
  struct Moving {
    FreeHandle from;
    Block* dead;  // null if it is one that holds nothing
    std::optional<FenceId> fence;
  };
  struct Step {
    Piece piece;
    std::optional<Moving> donor;
    std::optional<Handle> fresh;  // once it has been made
  };
  // What a try has learned: whose donors cannot be had, and how much the upstream really has.
  struct Tried {
    std::vector<const StreamUse*> barred;
    Bytes upstream_limit = Bytes::Max();
    bool foreign = true;  // whether donors of other streams are asked
  };

  absl::StatusOr<Block*> GrowToPeak(Pool& pool, SizeClass size_class, Bytes cap);
  absl::StatusOr<Block*> GrowOnce(Pool& pool, SizeClass size_class, Bytes cap, bool foreign);
  // All work of the device is done: for streams that may be gone. Breaks no capture that blocks the default stream.
  absl::Status SynchronizeDevice();
  // Plans how the window is filled, and takes the donors out of their pools. Empty, with shortage_ and why_, if it cannot be.
  std::vector<Step> TakePlan(Pool& pool, Bytes size, Bytes cap, const Tried& tried) GPULEDGER_REQUIRES(pool.mutex);
  [[nodiscard]] std::vector<FreeHandle> ListDonors(const Pool& pool, Extent keep, Bytes cap, const Tried& tried) const;
  // The three parts of carrying a plan out. False, with `tried` the wiser, asks for another plan; an error ends the request.
  absl::StatusOr<bool> RecordDonorFences(Pool& pool, std::vector<Step>& steps, Tried& tried);
  absl::StatusOr<bool> CreateHandles(std::vector<Step>& steps, Tried& tried);
  absl::StatusOr<bool> MapAll(Pool& pool, std::vector<Step>& steps, Tried& tried) GPULEDGER_REQUIRES(pool.mutex);
  // What was taken for a plan and is not mapped goes back to where it was.
  void Undo(Pool& pool, std::vector<Step>& steps) GPULEDGER_REQUIRES(pool.mutex);

  // Collects, and opens or closes the gate by the time that moving donors took lately.
  void WatchMoves();
  void BuryIn(Pool& from, const Pool& locked, Block* dead);
  void LockOthers(const Pool& pool, bool lock);
  void WaitForDead();
  // One round of Trim; streams that fail are added to `barred`. False if there was nothing to give back.
  bool TrimOnce(Bytes target, uint64_t freed_before, bool may_synchronise, std::vector<const StreamUse*>& barred);
  void Release(Handle handle);
  void Count(Bytes size, bool more);
  void Note(RecordKind kind, const Pool& pool, Bytes offset, Bytes size);

  Upstream& upstream_;
  Ledger& ledger_;
  AddressMap& blocks_;
  const Bytes granularity_;
  const bool aliasing_;
  const bool streams_may_vanish_;
  std::vector<std::unique_ptr<Pool>> pools_;
  std::vector<std::unique_ptr<Pool>> past_pools_;  // of kWhole, without a range: old pointers to their blocks stay readable
  uint32_t next_number_ = 0;
  std::vector<Dead> dead_;
  std::vector<FenceId> fences_;  // recorded for donors, and not dropped yet
  std::vector<Handle> orphans_;  // hold nothing: the upstream would not take them back
  Bytes orphaned_;
  Bytes peak_live_;
  uint64_t slack_permille_ = kSlackPermille;
  uint64_t moving_ = 0;     // nanoseconds that moving donors took since
  uint64_t looked_at_ = 0;  // this time
  Shortage shortage_ = Shortage::kUpstream;
  std::string why_;
  std::atomic<uint64_t> reserved_{0}, peak_reserved_{0}, upstream_calls_{0};
};

}  // namespace gpuledger
