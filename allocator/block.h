// allocator/block.h - a part of a range: what the pool knows of it, and what the front does.
//
// The pool sees space: taken, cached, unmapped or dead. Whoever took a block (the front) knows more: whether it is in use,
// pending, or on its way. A charge lives inside kInUse and kPending alone, so a block without a payer cannot have one.
#pragma once

#include <variant>
#include <vector>

#include "gpuledger/ledger.h"
#include "gpuledger/types.h"

namespace gpuledger {

class Pool;

enum class Space : uint8_t {
  kTaken,     // handed out by the pool, and not put back: in use, pending, in a cache of the front, or on its way
  kCached,    // memory that the pool may hand out; in a bin
  kUnmapped,  // addresses without memory: a multiple of the granularity
  kDead,      // its handle has moved on; the old mapping waits for a fence, and then becomes unmapped
};

struct Idle {};

struct InUse {
  explicit InUse(Charge its_charge) : charge(std::move(its_charge)) {}
  Charge charge;
  std::vector<Stream> other_streams;  // that use it, beside its pool's
};

// Freed, but work of other streams may still touch it.
struct Pending {
  Pending(Charge its_charge, std::vector<Stream> streams)
      : charge(std::move(its_charge)), unfenced(std::move(streams)) {}
  Charge charge;
  std::vector<Stream> unfenced;  // streams whose fence could not be recorded yet
  std::vector<FenceId> fences;   // recorded, not yet passed
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

  // ---- the front's: of a taken block ----
  std::variant<Idle, InUse, Pending> state;

  [[nodiscard]] Bytes end() const { return offset + size; }
  [[nodiscard]] bool taken() const { return space == Space::kTaken; }
  [[nodiscard]] bool cached() const { return space == Space::kCached; }
  [[nodiscard]] bool unmapped() const { return space == Space::kUnmapped; }
};

}  // namespace gpuledger
