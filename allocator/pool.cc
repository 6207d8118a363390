// The fast path of a pool, and its structure.
#include "pool.h"

#include <algorithm>
#include <bit>

#include <sched.h>

#include <fmt/format.h>

namespace gpuledger {

Block* BlockStore::Make() {
  if (unused_.empty()) {
    auto& fresh = *storage_.emplace_back(std::make_unique<std::array<Block, 128>>());
    unused_.reserve(storage_.size() * fresh.size());
    for (size_t i = fresh.size(); i-- > 0;) unused_.push_back(&fresh[i]);
  }
  Block* block = unused_.back();
  unused_.pop_back();
  return block;
}

void BlockStore::Recycle(Block* block) {
  block->front.address.store(0, std::memory_order_relaxed);  // whoever still has this pointer sees that it is no block now
  unused_.push_back(block);
}

Pool::Pool(const StreamUse& use, PoolKind kind, Range range, Bytes granularity, uint32_t number)
    : use_(&use), kind_(kind), range_(range), granularity_(granularity), number_(number) {
  if (range.size.is_zero() || range.size > Bin::kLongestRange) Die("Pool: a range of no use");
  first_ = store_.Make();
  first_->pool = this;
  first_->size = range.size;
  if (kind == PoolKind::kWhole) {
    mapped_ = range.size;
    handles_.emplace(Bytes(), Handle{HandleId(0), range.size});
    first_->space = Space::kCached;
    InsertBin(first_);
  } else {
    first_->space = Space::kUnmapped;
    unmapped_.emplace(Bytes(), first_);
  }
}

void Pool::BeginAgain(const StreamUse& use, Range range) {
  RemoveBin(first_);
  use_ = &use;
  range_ = range;
  first_->size = mapped_ = range.size;
  first_->front.address.store(0, std::memory_order_relaxed);
  handles_.clear();
  handles_.emplace(Bytes(), Handle{HandleId(0), range.size});
  InsertBin(first_);
}

// ---- the fast path ---------------------------------------------------------------------------------------------------

Block* Pool::Take(SizeClass size_class) {
  const Bytes size = size_class.charged();
  auto bin = static_cast<size_t>(size_class.bin());
  size_t index = bins_[bin].LowestThatFits(size);
  if (index == Bin::kNone) {
    size_t word = (bin + 1) / 64;
    uint64_t higher = word < bitmap_.size() ? bitmap_[word] & (~uint64_t{0} << ((bin + 1) % 64)) : 0;
    while (higher == 0) {
      if (++word >= bitmap_.size()) return nullptr;
      higher = bitmap_[word];
    }
    bin = word * 64 + static_cast<size_t>(std::countr_zero(higher));
    index = bins_[bin].size() - 1;
  }
  Block* block = bins_[bin].At(index);
  if (block->size == size) {
    EraseBin(bin, index);
  } else {
    Block* rest = Split(block, size);
    ReplaceBin(bin, index, rest);
  }
  block->space = Space::kTaken;
  return block;
}

void Pool::Put(Block* block, uint64_t now) {
  block->space = Space::kCached;
  block->freed_at = now;
  Block* const left = block->left;
  Block* const right = block->right;
  const bool joins_left = left != nullptr && left->cached();
  const bool joins_right = right != nullptr && right->cached();
  if (joins_left) {
    if (joins_right) RemoveBin(right);
    const auto bin = static_cast<size_t>(SizeClass::BinOf(left->size));
    const size_t index = bins_[bin].IndexOf(*left);
    if (joins_right) MergeWithRight(block);
    ReplaceBin(bin, index, MergeWithRight(left));
  } else if (joins_right) {
    const auto bin = static_cast<size_t>(SizeClass::BinOf(right->size));
    const size_t index = bins_[bin].IndexOf(*right);
    ReplaceBin(bin, index, MergeWithRight(block));
  } else {
    InsertBin(block);
  }
}

void Pool::PutDeferred() {
  if (deferred_.load(std::memory_order_seq_cst) == nullptr) return;
  for (Block* block = deferred_.exchange(nullptr, std::memory_order_seq_cst); block != nullptr;) {
    Block* const next = block->front.next;
    Put(block, block->freed_at);
    block = next;
  }
}

// Whoever adds to the list tries the lock after that, and whoever unlocks looks at the list after that: one of the two
// sees the other, and no block is left lying.
void Pool::Unlock() {
  mutex.Unlock();
  while (deferred_.load(std::memory_order_seq_cst) != nullptr && mutex.TryLock()) {
    PutDeferred();
    mutex.Unlock();
  }
}

void Pool::LockBesideAnother() {
  while (!mutex.TryLock()) sched_yield();
  PutDeferred();
}

void Pool::PutOrDefer(Block* block) {
  if (!mutex.TryLock()) {
    Block* first = deferred_.load(std::memory_order_relaxed);
    do {
      block->front.next = first;
    } while (!deferred_.compare_exchange_weak(first, block, std::memory_order_seq_cst, std::memory_order_relaxed));
    if (!mutex.TryLock()) return;
  } else {
    Put(block, block->freed_at);
  }
  PutDeferred();
  Unlock();
}

void Pool::InsertBin(Block* block) {
  const auto bin = static_cast<size_t>(SizeClass::BinOf(block->size));
  bins_[bin].Insert(block);
  bitmap_[bin / 64] |= uint64_t{1} << (bin % 64);
}

void Pool::EraseBin(size_t bin, size_t index) {
  bins_[bin].EraseAt(index);
  if (bins_[bin].empty()) bitmap_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
}

void Pool::RemoveBin(const Block* block) {
  const auto bin = static_cast<size_t>(SizeClass::BinOf(block->size));
  EraseBin(bin, bins_[bin].IndexOf(*block));
}

void Pool::ReplaceBin(size_t bin, size_t index, Block* changed) {
  if (static_cast<size_t>(SizeClass::BinOf(changed->size)) == bin) return bins_[bin].ReplaceAt(index, changed);
  EraseBin(bin, index);
  InsertBin(changed);
}

Block* Pool::Split(Block* block, Bytes low_size) {
  Block* high = store_.Make();
  high->pool = this;
  high->offset = block->offset + low_size;
  high->size = block->size - low_size;
  high->space = block->space;
  high->freed_at = block->freed_at;
  high->left = block;
  high->right = block->right;
  if (block->right != nullptr) block->right->left = high;
  block->right = high;
  block->size = low_size;
  return high;
}

Block* Pool::MergeWithRight(Block* block) {
  Block* right = block->right;
  // Most of it speaks for all; but a range that goes back as one is as fresh as its last byte.
  if (kind_ == PoolKind::kWhole ? right->freed_at > block->freed_at : right->size > block->size) block->freed_at = right->freed_at;
  block->size += right->size;
  block->right = right->right;
  if (right->right != nullptr) right->right->left = block;
  store_.Recycle(right);
  return block;
}

// ---- handles and blocks ------------------------------------------------------------------------------------------------

Block* Pool::CachedHolding(Extent extent) const {
  // Only a bin of blocks as large as the extent can have it, and there only the last block that begins at or before it.
  const auto smallest = static_cast<size_t>(SizeClass::BinOf(extent.size));
  for (size_t word = smallest / 64; word < bitmap_.size(); ++word) {
    uint64_t bins = bitmap_[word];
    if (word == smallest / 64) bins &= ~uint64_t{0} << (smallest % 64);
    for (; bins != 0; bins &= bins - 1) {
      Block* block = bins_[word * 64 + static_cast<size_t>(std::countr_zero(bins))].LastUpTo(extent.offset);
      if (block != nullptr && block->end() >= extent.end()) return block;
    }
  }
  return nullptr;
}

Block* Pool::CutOut(Block* block, Extent extent) {
  RemoveBin(block);
  if (block->offset < extent.offset) {
    Block* high = Split(block, extent.offset - block->offset);
    InsertBin(block);
    block = high;
  }
  if (block->size > extent.size) InsertBin(Split(block, extent.size));
  return block;
}

Block* Pool::TakeAt(Bytes offset, Bytes size) {
  Block* block = CachedHolding({offset, size});
  if (block == nullptr) return nullptr;
  block = CutOut(block, {offset, size});
  block->space = Space::kTaken;
  return block;
}

Block* Pool::Carve(Bytes offset, Bytes size) {
  Block* const block = TakeAt(offset, size);
  if (block == nullptr) Die("Pool::Carve: what was mapped is not cached");
  return block;
}

Block* Pool::UnmappedHolding(Bytes offset) const {
  auto next = unmapped_.upper_bound(offset);
  if (next == unmapped_.begin()) return nullptr;
  Block* block = std::prev(next)->second;
  return offset < block->end() ? block : nullptr;
}

void Pool::NoteMapped(Bytes offset, Handle handle, uint64_t now) {
  Block* block = UnmappedHolding(offset);
  if (block == nullptr || offset + handle.size > block->end()) Die("Pool::NoteMapped: a handle mapped over another");
  unmapped_.erase(block->offset);
  if (block->offset < offset) {
    Block* high = Split(block, offset - block->offset);
    unmapped_.emplace(block->offset, block);
    block = high;
  }
  if (block->size > handle.size) {
    Block* high = Split(block, handle.size);
    unmapped_.emplace(high->offset, high);
  }
  handles_.emplace(offset, handle);
  mapped_ += handle.size;
  Put(block, now);
}

void Pool::ListFreeHandles(Extent keep, std::vector<FreeHandle>& list) const {
  const auto smallest = static_cast<size_t>(SizeClass::BinOf(granularity_));
  const auto add = [&](const Block* block) {
    for (auto h = handles_.lower_bound(block->offset); h != handles_.end() && h->first + h->second.size <= block->end(); ++h) {
      if (h->first < keep.end() && h->first + h->second.size > keep.offset) continue;
      list.push_back({const_cast<Pool*>(this), h->first, h->second, block->freed_at});
    }
  };
  for (size_t word = smallest / 64; word < bitmap_.size(); ++word) {
    uint64_t bins = bitmap_[word];
    if (word == smallest / 64) bins &= ~uint64_t{0} << (smallest % 64);
    for (; bins != 0; bins &= bins - 1) bins_[word * 64 + static_cast<size_t>(std::countr_zero(bins))].ForEach(add);
  }
}

Block* Pool::Detach(Bytes offset, Handle handle) {
  const auto held = handles_.find(offset);
  if (held == handles_.end() || held->second.id != handle.id) return nullptr;
  Block* block = CachedHolding({offset, handle.size});
  if (block == nullptr) return nullptr;
  block = CutOut(block, {offset, handle.size});
  block->space = Space::kDead;
  handles_.erase(held);
  mapped_ -= handle.size;
  return block;
}

void Pool::Reattach(Block* dead, Handle handle) {
  handles_.emplace(dead->offset, handle);
  mapped_ += handle.size;
  Put(dead, dead->freed_at);
}

void Pool::Bury(Block* dead) {
  dead->space = Space::kUnmapped;
  if (Block* right = dead->right; right != nullptr && right->unmapped()) {
    unmapped_.erase(right->offset);
    MergeWithRight(dead);
  }
  if (Block* left = dead->left; left != nullptr && left->unmapped()) {
    MergeWithRight(left);
  } else {
    unmapped_.emplace(dead->offset, dead);
  }
}

Bytes Pool::spare() const {
  std::vector<FreeHandle> list;
  ListFreeHandles({}, list);
  Bytes sum;
  for (const FreeHandle& free : list) sum += free.handle.size;
  return sum;
}

// ---- the structure, checked --------------------------------------------------------------------------------------------

absl::Status Pool::Check() const {
  const auto wrong = [this](std::string_view what, Bytes at) {
    return absl::InternalError(fmt::format("pool {} of stream {}: {} at offset {}", number_, fmt::ptr(stream().raw()), what, ToString(at)));
  };
  Bytes at, mapped;
  size_t cached_blocks = 0, unmapped_blocks = 0, in_bins = 0;
  const Block* left = nullptr;
  auto handle = handles_.begin();
  Bytes handle_end;  // of the last handle begun: memory goes up to here
  for (const Block* b = first_; b != nullptr; left = b, b = b->right) {
    if (b->left != left || b->pool != this) return wrong("neighbours disagree", at);
    if (b->offset != at || b->size.is_zero() || !(b->size % SizeClass::kGranule).is_zero()) return wrong("blocks do not tile", at);
    if (left != nullptr && left->space == b->space && (b->cached() || b->unmapped())) return wrong("unmerged neighbours", at);
    if (b->taken() || b->cached()) {
      for (; handle_end < b->end(); ++handle) {
        if (handle == handles_.end() || handle->first != std::max(handle_end, b->offset)) return wrong("memory without a handle", at);
        handle_end = handle->first + handle->second.size;
        mapped += handle->second.size;
      }
    } else if (handle_end > b->offset || !(b->offset % granularity_).is_zero() || !(b->size % granularity_).is_zero()) {
      return wrong("unmapped or dead space that is part of a handle", at);
    }
    if (b->unmapped()) {
      ++unmapped_blocks;
      const auto found = unmapped_.find(b->offset);
      if (found == unmapped_.end() || found->second != b) return wrong("an unmapped block is not in the list", at);
    }
    if (b->cached()) {
      ++cached_blocks;
      if (!bins_[static_cast<size_t>(SizeClass::BinOf(b->size))].Holds(*b)) return wrong("a cached block is in no bin", at);
    }
    at = b->end();
  }
  if (at != range_.size) return wrong("blocks do not reach the end of the range", at);
  if (handle != handles_.end() || mapped != mapped_) return wrong("handles beside memory", at);
  if (unmapped_blocks != unmapped_.size()) return wrong("the list of unmapped blocks holds others", at);
  for (size_t bin = 0; bin < bins_.size(); ++bin) {
    const bool marked = (bitmap_[bin / 64] >> (bin % 64) & 1) != 0;
    if (marked == bins_[bin].empty()) return wrong("bitmap and bins disagree", at);
    if (!bins_[bin].Sorted()) return wrong("a bin is out of order", at);
    in_bins += bins_[bin].size();
  }
  if (cached_blocks != in_bins) return wrong("a bin holds what is not cached", at);
  return absl::OkStatus();
}

}  // namespace gpuledger
