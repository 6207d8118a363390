// allocator/block.h - a part of a range: what the pool knows of it, and what the front does.
//
// The pool sees space: taken, cached, unmapped or dead. Whoever took a block knows more (block_front.h): whether it is in
// use, pending, or in a thread's cache.
#pragma once

#include "block_front.h"
#include "gpuledger/types.h"

namespace gpuledger {

class Pool;

enum class Space : uint8_t {
  kTaken,     // handed out by the pool, and not put back: in use, pending, in a cache of the front, or on its way
  kCached,    // memory that the pool may hand out; in a bin
  kUnmapped,  // addresses without memory: a multiple of the granularity
  kDead,      // its handle has moved on; the old mapping waits for a fence, and then becomes unmapped
};

struct Block {
  // ---- the pool's: guarded by pool->mutex, but pool, offset and size of a taken block stay as they are ----
  Pool* pool = nullptr;
  Bytes offset;  // from the range's base
  Bytes size;    // a multiple of SizeClass::kGranule
  Block* left = nullptr;  // neighbours in the range
  Block* right = nullptr;
  uint64_t freed_at = 0;  // cached: when most of it was put there, nanoseconds of the upstream's clock
  Space space = Space::kTaken;

  BlockFront front;

  [[nodiscard]] Bytes end() const { return offset + size; }
  [[nodiscard]] bool taken() const { return space == Space::kTaken; }
  [[nodiscard]] bool cached() const { return space == Space::kCached; }
  [[nodiscard]] bool unmapped() const { return space == Space::kUnmapped; }
};

}  // namespace gpuledger
