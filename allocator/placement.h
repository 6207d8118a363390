// allocator/placement.h - where memory comes from on a miss: windows, handles, donors (placement.md, policy R).
//
// A miss looks for the position in its pool that needs the fewest unmapped bytes. New handles fill it while reserved stays
// within 1.5 % of the most that was ever live (the gate); the rest comes from donors: handles of any pool whose every byte
// is cached. A donor is mapped at its new address while it still is at its old one. Its old address is dead from then on,
// and is unmapped once a fence recorded on the donor's stream has passed; another stream is made to wait for that fence
// before it uses the memory. Only when donors run out is the gate passed, up to the cap.
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

#include "gpuledger/ledger.h"
#include "gpuledger/upstream.h"
#include "pool.h"

namespace gpuledger {

// What a miss was short of: it decides what would have helped.
enum class Shortage : uint8_t { kCap, kUpstream, kAddresses };

class Placement {
 public:
  // How much more than the most ever live may be reserved before donors are asked: 1.5 %.
  static constexpr uint64_t kSlackPermille = 15;

  // `ledger` gets the records of what is mapped and unmapped.
  Placement(Upstream& upstream, Ledger& ledger);

  // A new pool with its own range, all open end. kResourceExhausted if there are no addresses for it.
  absl::StatusOr<Pool*> MakePool(Stream stream, PoolKind kind);
  // A pool whose range came with its memory (Capabilities::mapping is false). Counts as reserved. And its end, once the
  // upstream has taken the range back.
  Pool* AdoptWholeRange(Stream stream, Range range);
  void ForgetWholeRange(Pool* pool);
  // In the order in which they were made.
  [[nodiscard]] const std::vector<std::unique_ptr<Pool>>& pools() const { return pools_; }

  // A taken block of `size` in `pool`, out of new handles and donors. `live` is what is in use and pending now, `peak` the
  // most that was ever in use. Errors: kResourceExhausted (shortage() says of what), or the upstream's own; blocks that are
  // taken are untouched, and what was mapped on the way is cached. Waits for work of streams only where the upstream cannot
  // alias, or a stream cannot be made to wait.
  absl::StatusOr<Block*> Grow(Pool& pool, Bytes size, Bytes live, Bytes peak, Bytes cap);
  [[nodiscard]] Shortage shortage() const { return shortage_; }

  // Unmaps dead addresses whose fence has passed. Never waits.
  void Collect();
  // Gives wholly cached handles back until reserved is at most `target`, the longest free first, and of them only those
  // free since before `freed_before`; also handles that the upstream would not take back before. Waits for the work queued
  // on their streams.
  void Trim(Bytes target, uint64_t freed_before = std::numeric_limits<uint64_t>::max());
  // Waits for all fences and unmaps all dead addresses; then the ranges go back. For the destructor: pools are left empty.
  void Unreserve();

  // Bytes of the handles that are mapped, each once. Any thread, no lock.
  [[nodiscard]] Bytes reserved() const { return Bytes(reserved_.load(std::memory_order_relaxed)); }
  [[nodiscard]] Bytes peak_reserved() const { return Bytes(peak_reserved_.load(std::memory_order_relaxed)); }
  // Bytes of handles that hold nothing, because the upstream would not take them back. They count against the cap.
  [[nodiscard]] Bytes orphaned() const { return orphaned_; }
  [[nodiscard]] uint64_t upstream_calls() const { return upstream_calls_.load(std::memory_order_relaxed); }
  void CountUpstreamCall() { upstream_calls_.fetch_add(1, std::memory_order_relaxed); }

  // The books: reserved is what the pools hold, and dead blocks are those listed. The caller checks each pool.
  [[nodiscard]] absl::Status Check() const;

 private:
  // A fence recorded for donors of one stream; dropped when it has passed and no dead block waits for it.
  struct DonorFence {
    FenceId fence;
    Stream stream;
  };
  // An old mapping that waits for its fence.
  struct Dead {
    Block* block;
    HandleId handle;
    FenceId fence;
  };
  // Where a handle of a plan goes, and where it comes from.
  struct Piece {
    Bytes offset;
    Bytes size;
    std::optional<FreeHandle> donor;  // or a new one
  };
  struct Plan {
    Window window;
    std::vector<Piece> pieces;
    Bytes created;
  };

  absl::StatusOr<Plan> MakePlan(Pool& pool, Window window, Bytes size, Bytes below_gate, Bytes below_limit) GPULEDGER_REQUIRES(pool.mutex);

  Upstream& upstream_;
  Ledger& ledger_;
  const Bytes granularity_;
  const bool aliasing_;
  std::vector<std::unique_ptr<Pool>> pools_;
  std::vector<Dead> dead_;
  std::vector<DonorFence> fences_;
  std::vector<Handle> orphans_;
  Bytes orphaned_;
  Bytes peak_live_;
  Shortage shortage_ = Shortage::kUpstream;
  std::string why_;
  std::atomic<uint64_t> reserved_{0}, peak_reserved_{0}, upstream_calls_{0};
};

}  // namespace gpuledger
