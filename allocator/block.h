// allocator/block.h - a part of a range, and what it may be.
//
// A block is in exactly one state, and a state holds exactly what belongs to it: a charge lives inside kInUse and
// kPending alone, so a cached block with a payer, or a live one without, cannot be written down.
#pragma once

#include <variant>
#include <vector>

#include "gpuledger/ledger.h"
#include "gpuledger/types.h"

namespace gpuledger {

class Pool;

struct Cached {};

struct Unmapped {};  // addresses without memory: whole granules of the range

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
  Pool* pool = nullptr;
  Bytes offset;  // from the range's base
  Bytes size;    // a multiple of SizeClass::kGranule
  std::variant<Cached, Unmapped, InUse, Pending> state;
  Block* left = nullptr;  // neighbours in the range
  Block* right = nullptr;
  Block* bin_previous = nullptr;  // neighbours in the bin, if cached
  Block* bin_next = nullptr;

  [[nodiscard]] Bytes end() const { return offset + size; }
  [[nodiscard]] bool cached() const { return std::holds_alternative<Cached>(state); }
  [[nodiscard]] bool unmapped() const { return std::holds_alternative<Unmapped>(state); }
  [[nodiscard]] bool free_space() const { return cached() || unmapped(); }
};

}  // namespace gpuledger
