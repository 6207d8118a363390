// allocator/bin.h - the cached blocks of one bin, by address, in one small array.
//
// An entry packs a block's offset and size into one word, so that looking for the lowest block that fits reads the array
// and no block. The lowest address is at the back, where taking it moves nothing.
//
// Not thread-safe: the pool's mutex guards it.
#pragma once

#include <algorithm>
#include <vector>

#include "block.h"

namespace gpuledger {

class Bin {
 public:
  // Offsets fit if a range is at most this long.
  static constexpr Bytes kLongestRange = Bytes(uint64_t{1} << 45);

  static constexpr size_t kNone = ~size_t{0};

  [[nodiscard]] bool empty() const { return entries_.empty(); }
  [[nodiscard]] size_t size() const { return entries_.size(); }
  [[nodiscard]] Block* At(size_t index) const { return entries_[index].block; }

  // The lowest-addressed block of at least `size`; kNone if there is none.
  [[nodiscard]] size_t LowestThatFits(Bytes size) const {
    const uint64_t wanted = std::min(size / SizeClass::kGranule, kSizeMask);
    for (size_t i = entries_.size(); i-- > 0;) {
      if ((entries_[i].key & kSizeMask) >= wanted && (wanted < kSizeMask || entries_[i].block->size >= size)) return i;
    }
    return kNone;
  }
  // The block with the highest offset that is at most `offset`; null if there is none.
  [[nodiscard]] Block* LastUpTo(Bytes offset) const {
    const size_t i = FirstBelow(((offset / SizeClass::kGranule) << kSizeBits | kSizeMask) + 1);
    return i == entries_.size() ? nullptr : entries_[i].block;
  }
  // Of a block that is here, with the offset and size that it was inserted with.
  [[nodiscard]] size_t IndexOf(const Block& block) const { return FirstBelow(KeyOf(block)) - 1; }

  void Insert(Block* block) {
    const uint64_t key = KeyOf(*block);
    entries_.insert(entries_.begin() + static_cast<std::ptrdiff_t>(FirstBelow(key)), Entry{key, block});
  }
  void EraseAt(size_t index) { entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(index)); }
  // `block` lies between the same neighbours as the one that was there.
  void ReplaceAt(size_t index, Block* block) { entries_[index] = Entry{KeyOf(*block), block}; }

  [[nodiscard]] bool Holds(const Block& block) const {
    const size_t i = FirstBelow(KeyOf(block));
    return i > 0 && entries_[i - 1].block == &block && entries_[i - 1].key == KeyOf(block);
  }
  [[nodiscard]] bool Sorted() const {
    return std::is_sorted(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.key > b.key; });
  }
  template <class Each>
  void ForEach(Each&& each) const {  // highest address first
    for (const Entry& entry : entries_) each(entry.block);
  }

 private:
  struct Entry {
    uint64_t key;  // offset above, size below, in granules; a size that does not fit is cut to the largest that does
    Block* block;
  };
  static constexpr int kSizeBits = 27;
  static constexpr uint64_t kSizeMask = (uint64_t{1} << kSizeBits) - 1;

  static uint64_t KeyOf(const Block& block) {
    return (block.offset / SizeClass::kGranule) << kSizeBits | std::min(block.size / SizeClass::kGranule, kSizeMask);
  }
  // The index of the first entry whose key is below `key`. The halving has no branch to mispredict.
  [[nodiscard]] size_t FirstBelow(uint64_t key) const {
    const Entry* base = entries_.data();
    size_t length = entries_.size();
    if (length == 0) return 0;
    while (length > 1) {
      const size_t half = length / 2;
      base = base[half - 1].key >= key ? base + half : base;
      length -= half;
    }
    return static_cast<size_t>(base - entries_.data()) + (base->key >= key ? 1 : 0);
  }

  std::vector<Entry> entries_;
};

}  // namespace gpuledger
