// allocator/pool.h - the blocks of one stream: a range, cut into blocks that tile it, and bins of the cached ones.
//
//   [ in use | cached | pending | unmapped ........ | cached ]          tiles [0, end), end a multiple of the granule
//
// Two cached neighbours never stand side by side, nor two unmapped ones: they merge at once. Handles are one granule
// each; a granule is mapped unless it lies in an unmapped block. Finding a cached block is bins with a bitmap, eight per
// octave, the lowest-addressed fitting block first (placement.md, policy R.2); finding where to grow is a window over
// free space (R.3). A pool knows no upstream: the allocator creates handles and maps them.
//
// Not thread-safe: the allocator's lock guards it.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "block.h"
#include "gpuledger/upstream.h"

namespace gpuledger {

// Storage for blocks: never shrinks, reuses what is given back.
class BlockStore {
 public:
  Block* Make();
  void Recycle(Block* block);

 private:
  std::vector<std::unique_ptr<std::array<Block, 128>>> storage_;
  std::vector<Block*> unused_;
};

// Where a request fits with the fewest unmapped granules.
struct Window {
  Bytes offset;
  uint64_t missing;  // granules to map
};

class Pool {
 public:
  Pool(Stream stream, Range range, Bytes granule, BlockStore& store);

  [[nodiscard]] Stream stream() const { return stream_; }
  [[nodiscard]] Range range() const { return range_; }
  [[nodiscard]] Block* first() const { return first_; }
  [[nodiscard]] DevicePtr address(const Block& block) const { return range_.base + block.offset; }

  // The lowest-addressed cached block that fits, of its bin or the next non-empty one, cut to size; null on a miss.
  // It leaves its bin; the caller gives it a charge.
  Block* Take(SizeClass size_class);
  // Makes a block cached, and merges it with cached neighbours.
  void Put(Block* block);

  // Free space of `size` that needs the fewest unmapped granules; none if the range is too small.
  [[nodiscard]] std::optional<Window> FindWindow(Bytes size) const;
  // The granules of [offset, offset + size) that are not mapped.
  [[nodiscard]] std::vector<uint64_t> MissingGranules(Bytes offset, Bytes size) const;
  // Cuts [offset, offset + size), mapped and cached, out of its block and its bin.
  Block* Carve(Bytes offset, Bytes size);

  // Wholly cached granules outside [keep_offset, keep_end), highest first.
  [[nodiscard]] std::vector<uint64_t> DonorGranules(Bytes keep_offset, Bytes keep_end) const;
  // Granule `g` is mapped to `handle` now: its addresses become cached.
  void NoteMapped(uint64_t g, HandleId handle);
  // Granule `g`, wholly cached, loses its handle, which is returned: its addresses become unmapped.
  HandleId NoteUnmapped(uint64_t g);
  [[nodiscard]] DevicePtr granule_address(uint64_t g) const { return range_.base + granule_ * g; }
  [[nodiscard]] uint64_t mapped_granules() const { return mapped_granules_; }
  // The handle of a mapped granule; none for an unmapped one.
  [[nodiscard]] std::optional<HandleId> handle(uint64_t g) const;
  [[nodiscard]] Bytes end() const { return last_ == nullptr ? Bytes() : last_->end(); }

  // The structure: tiling, merged neighbours, bins and bitmap, handles. kInternal names what does not hold.
  [[nodiscard]] absl::Status Check() const;

 private:
  Block* Split(Block* block, Bytes low_size);  // the high part, in the same state (cached or unmapped), in no bin
  Block* MergeWithRight(Block* block);
  void InsertBin(Block* block);
  void RemoveBin(Block* block);
  Block* BlockAt(Bytes offset) const;
  void ExtendTo(Bytes end);
  void DropUnmappedTail();
  // [offset, offset + size) inside one free block becomes a block of its own with this state, and merges.
  template <class State>
  void Convert(Bytes offset, Bytes size);

  const Stream stream_;
  const Range range_;
  const Bytes granule_;
  BlockStore& store_;
  Block* first_ = nullptr;
  Block* last_ = nullptr;
  std::vector<std::optional<HandleId>> handles_;  // by granule
  uint64_t mapped_granules_ = 0;
  std::array<Block*, SizeClass::kBinCount> bins_{};
  std::array<uint64_t, SizeClass::kBinCount / 64> bitmap_{};
  static_assert(SizeClass::kBinCount % 64 == 0);
};

}  // namespace gpuledger
