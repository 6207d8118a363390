// allocator/block_front.h - what a block is to those who use it, beside what it is to its pool (block.h).
//
// To its pool a block handed out is simply taken. In front of the pool it is
//
//   idle      in a thread's cache, or on its way to or from one
//   in use    charged, its address given out
//   busy      in use, and one thread looks at it or re-tags it: others wait for that
//   freeing   in use no longer; the thread that freed it settles the rest
//   pending   freed, and work of other streams may still touch it
//
// `state` is the only thing two threads can change at once; a step out of *in use* is a compare-and-swap, so that of two
// threads that free one block, one is told. `charge` is set and cleared together with the ledger's own change, under the
// same shard's lock: whoever has stopped the ledger sees both or neither.
#pragma once

#include <atomic>
#include <cstdint>

#include "gpuledger/ledger.h"
#include "gpuledger/types.h"

namespace gpuledger {

struct Block;
struct StreamCache;

enum class FrontState : uint8_t { kIdle, kInUse, kBusy, kFreeing, kPending };

struct BlockFront {
  std::atomic<uint64_t> address = 0;  // set when its pool hands it out
  std::atomic<FrontState> state_in_front = FrontState::kIdle;
  std::atomic<bool> used_elsewhere = false;  // other streams use it (pending_blocks.h knows which)
  uint32_t fences = 0;                       // of a pending block: how many have not passed (PendingBlocks' lock)
  Charge::Entry* charge = nullptr;
  StreamCache* home = nullptr;  // the thread's cache that a small block goes back to; null for a large one
  Block* next = nullptr;        // in a cache, or in a list of blocks on their way back
};

}  // namespace gpuledger
