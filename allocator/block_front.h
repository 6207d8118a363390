// allocator/block_front.h - what a taken block is to those who use it, beside what it is to its pool (block.h).
//
//   idle      in a thread's cache, or on its way to or from one
//   in use    charged, its address given out
//   busy      in use, and one thread looks at it or re-tags it: whoever else wants it waits for that
//   freeing   in use no longer; the thread that freed it does the rest
//   pending   freed, and work of other streams may still touch it
//
// Two threads can meet only in `state`: a step out of *in use* is a compare-and-swap, so that of two threads that free one
// block one is told. Whoever holds a block busy takes no lock that others hold while they wait for it.
// Blocks are never deleted before their allocator, only used again: an old pointer to one is compared by address.
#pragma once

#include <atomic>
#include <cstdint>

#include "gpuledger/ledger.h"
#include "gpuledger/types.h"

namespace gpuledger {

struct Block;
struct StreamCache;

enum class FrontState : uint8_t { kIdle, kInUse, kBusy, kFreeing, kPending };

// What a block in use needs besides an ordinary free.
inline constexpr uint8_t kUsedElsewhere = 1;  // other streams than its own use it: PendingBlocks knows which
inline constexpr uint8_t kOutlives = 2;       // its stream, or its private pool: the pool may be another stream's by now

struct BlockFront {
  std::atomic<uint64_t> address = 0;  // from when its pool handed it out until the block is made into another
  std::atomic<FrontState> state = FrontState::kIdle;
  std::atomic<uint8_t> uses = 0;             // kUsedElsewhere, kOutlives; changed while it is busy
  uint32_t fences = 0;                       // of a pending block: not passed yet; PendingBlocks' lock
  Charge::Entry* charge = nullptr;           // while in use, busy or pending; set and cleared with its shard locked
  StreamCache* home = nullptr;               // the cache that a small block goes back to; null for a large one
  Block* next = nullptr;                     // in a cache, or in a list of blocks on their way back
  std::atomic<uint32_t> list_bytes = 0;      // of a list of returned blocks, this one and all behind it
};

}  // namespace gpuledger
