#include "pool.h"

#include <algorithm>
#include <bit>

#include <fmt/format.h>

namespace gpuledger {

Block* BlockStore::Make() {
  if (unused_.empty()) {
    auto& fresh = *storage_.emplace_back(std::make_unique<std::array<Block, 128>>());
    unused_.reserve(storage_.size() * fresh.size());
    for (Block& block : fresh) unused_.push_back(&block);
  }
  Block* block = unused_.back();
  unused_.pop_back();
  return block;
}

void BlockStore::Recycle(Block* block) {
  block->state.emplace<Cached>();
  block->left = block->right = block->bin_previous = block->bin_next = nullptr;
  unused_.push_back(block);
}

Pool::Pool(Stream stream, Range range, Bytes granule, BlockStore& store)
    : stream_(stream), range_(range), granule_(granule), store_(store) {}

// ---- the fast path ---------------------------------------------------------------------------------------------------

Block* Pool::Take(SizeClass size_class) {
  Block* best = nullptr;
  const auto bin = static_cast<size_t>(size_class.bin());
  for (Block* b = bins_[bin]; b != nullptr; b = b->bin_next) {
    if (b->size >= size_class.charged() && (best == nullptr || b->offset < best->offset)) best = b;
  }
  for (size_t from = bin + 1, word = from / 64; best == nullptr && word < bitmap_.size(); ++word) {
    const uint64_t higher = word == from / 64 ? bitmap_[word] & (~uint64_t{0} << (from % 64)) : bitmap_[word];
    if (higher == 0) continue;
    for (Block* b = bins_[word * 64 + static_cast<size_t>(std::countr_zero(higher))]; b != nullptr; b = b->bin_next) {
      if (best == nullptr || b->offset < best->offset) best = b;
    }
  }
  if (best == nullptr) return nullptr;
  RemoveBin(best);
  if (best->size > size_class.charged()) InsertBin(Split(best, size_class.charged()));
  return best;
}

void Pool::Put(Block* block) {
  block->state.emplace<Cached>();
  if (block->right != nullptr && block->right->cached()) {
    RemoveBin(block->right);
    MergeWithRight(block);
  }
  if (block->left != nullptr && block->left->cached()) {
    RemoveBin(block->left);
    block = MergeWithRight(block->left);
  }
  InsertBin(block);
}

void Pool::InsertBin(Block* block) {
  const auto bin = static_cast<size_t>(SizeClass::BinOf(block->size));
  block->bin_previous = nullptr;
  block->bin_next = bins_[bin];
  if (bins_[bin] != nullptr) bins_[bin]->bin_previous = block;
  bins_[bin] = block;
  bitmap_[bin / 64] |= uint64_t{1} << (bin % 64);
}

void Pool::RemoveBin(Block* block) {
  const auto bin = static_cast<size_t>(SizeClass::BinOf(block->size));
  (block->bin_previous == nullptr ? bins_[bin] : block->bin_previous->bin_next) = block->bin_next;
  if (block->bin_next != nullptr) block->bin_next->bin_previous = block->bin_previous;
  block->bin_previous = block->bin_next = nullptr;
  if (bins_[bin] == nullptr) bitmap_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
}

Block* Pool::Split(Block* block, Bytes low_size) {
  Block* high = store_.Make();
  high->pool = this;
  high->offset = block->offset + low_size;
  high->size = block->size - low_size;
  if (block->unmapped()) high->state.emplace<Unmapped>();
  high->left = block;
  high->right = block->right;
  (block->right == nullptr ? last_ : block->right->left) = high;
  block->right = high;
  block->size = low_size;
  return high;
}

Block* Pool::MergeWithRight(Block* block) {
  Block* right = block->right;
  block->size += right->size;
  block->right = right->right;
  (right->right == nullptr ? last_ : right->right->left) = block;
  store_.Recycle(right);
  return block;
}

// ---- growing and shrinking -------------------------------------------------------------------------------------------

Block* Pool::BlockAt(Bytes offset) const {
  for (Block* b = first_; b != nullptr; b = b->right) {
    if (offset < b->end()) return b;
  }
  return nullptr;
}

std::optional<Window> Pool::FindWindow(Bytes size) const {
  std::optional<Window> best;
  const auto consider = [&](Bytes offset, Bytes run_begin, Bytes run_end) {
    if (offset < run_begin || offset + size > run_end) return;
    const uint64_t missing = MissingGranules(offset, size).size();
    if (!best || missing < best->missing) best = Window{offset, missing};
  };
  // Runs of free space between live blocks; the last one goes on to the end of the range.
  Block* b = first_;
  while (true) {
    while (b != nullptr && !b->free_space()) b = b->right;
    Block* const run = b;
    while (b != nullptr && b->free_space()) b = b->right;
    const Bytes begin = run == nullptr ? end() : run->offset;
    const Bytes run_end = b == nullptr ? range_.size : b->offset;
    consider(begin, begin, run_end);
    for (Block* piece = run; piece != b; piece = piece->right) {
      if (!piece->cached()) continue;
      consider(piece->offset, begin, run_end);
      if (piece->end() >= size) consider(piece->end() - size, begin, run_end);
    }
    if (b == nullptr) return best;
  }
}

std::vector<uint64_t> Pool::MissingGranules(Bytes offset, Bytes size) const {
  std::vector<uint64_t> missing;
  for (uint64_t g = offset / granule_; granule_ * g < offset + size; ++g) {
    if (!handle(g)) missing.push_back(g);
  }
  return missing;
}

Block* Pool::Carve(Bytes offset, Bytes size) {
  Block* block = BlockAt(offset);
  RemoveBin(block);
  if (block->offset < offset) {
    Block* high = Split(block, offset - block->offset);
    InsertBin(block);
    block = high;
  }
  if (block->size > size) InsertBin(Split(block, size));
  return block;
}

std::vector<uint64_t> Pool::DonorGranules(Bytes keep_offset, Bytes keep_end) const {
  std::vector<uint64_t> donors;
  for (Block* b = last_; b != nullptr; b = b->left) {
    if (!b->cached()) continue;
    const uint64_t begin = b->offset.RoundUpTo(granule_) / granule_;
    for (uint64_t g = b->end() / granule_; g > begin; --g) {
      const Bytes from = granule_ * (g - 1), to = granule_ * g;
      if (to <= keep_offset || from >= keep_end) donors.push_back(g - 1);
    }
  }
  return donors;
}

void Pool::NoteMapped(uint64_t g, HandleId handle) {
  ExtendTo(granule_ * (g + 1));
  if (g >= handles_.size()) handles_.resize(g + 1);
  handles_[g] = handle;
  mapped_granules_ += 1;
  Convert<Cached>(granule_ * g, granule_);
}

HandleId Pool::NoteUnmapped(uint64_t g) {
  const HandleId handle = *handles_[g];
  handles_[g].reset();
  mapped_granules_ -= 1;
  Convert<Unmapped>(granule_ * g, granule_);
  DropUnmappedTail();
  return handle;
}

std::optional<HandleId> Pool::handle(uint64_t g) const { return g < handles_.size() ? handles_[g] : std::nullopt; }

template <class State>
void Pool::Convert(Bytes offset, Bytes size) {
  Block* block = BlockAt(offset);
  if (block->cached()) RemoveBin(block);
  const auto keep = [this](Block* part) {
    if (part->cached()) InsertBin(part);
  };
  if (block->offset < offset) {
    Block* high = Split(block, offset - block->offset);
    keep(block);
    block = high;
  }
  if (block->size > size) keep(Split(block, size));
  if constexpr (std::is_same_v<State, Cached>) {
    Put(block);
  } else {
    block->state.template emplace<State>();
    if (block->right != nullptr && block->right->unmapped()) MergeWithRight(block);
    if (block->left != nullptr && block->left->unmapped()) MergeWithRight(block->left);
  }
}

void Pool::ExtendTo(Bytes new_end) {
  if (end() >= new_end) return;
  Block* block = store_.Make();
  block->pool = this;
  block->offset = end();
  block->size = new_end - end();
  block->state.emplace<Unmapped>();
  block->left = last_;
  (last_ == nullptr ? first_ : last_->right) = block;
  last_ = block;
  if (block->left != nullptr && block->left->unmapped()) MergeWithRight(block->left);
}

void Pool::DropUnmappedTail() {
  if (last_ == nullptr || !last_->unmapped()) return;
  Block* tail = last_;
  last_ = tail->left;
  (last_ == nullptr ? first_ : last_->right) = nullptr;
  store_.Recycle(tail);
}

// ---- the structure, checked --------------------------------------------------------------------------------------------

absl::Status Pool::Check() const {
  const auto wrong = [this](std::string_view what, Bytes at) {
    return absl::InternalError(fmt::format("pool of stream {}: {} at offset {}", fmt::ptr(stream_.raw()), what, ToString(at)));
  };
  Bytes at;
  uint64_t cached_blocks = 0, mapped = 0;
  const Block* left = nullptr;
  for (const Block* b = first_; b != nullptr; left = b, b = b->right) {
    if (b->left != left || b->pool != this) return wrong("neighbours disagree", at);
    if (b->offset != at || b->size.is_zero() || !(b->size % SizeClass::kGranule).is_zero()) return wrong("blocks do not tile", at);
    if (left != nullptr && left->state.index() == b->state.index() && b->free_space()) return wrong("unmerged neighbours", at);
    if (b->unmapped() && !((b->offset % granule_).is_zero() && (b->size % granule_).is_zero())) return wrong("part of a granule unmapped", at);
    for (uint64_t g = b->offset / granule_; granule_ * g < b->end(); ++g) {
      if (handle(g).has_value() == b->unmapped()) return wrong("a granule's handle and its block disagree", at);
    }
    if (b->cached()) {
      ++cached_blocks;
      const Block* in_bin = bins_[static_cast<size_t>(SizeClass::BinOf(b->size))];
      while (in_bin != nullptr && in_bin != b) in_bin = in_bin->bin_next;
      if (in_bin == nullptr) return wrong("a cached block is in no bin", at);
    }
    at = b->end();
  }
  if (left != last_) return wrong("the last block is another", at);
  for (size_t bin = 0; bin < bins_.size(); ++bin) {
    const bool marked = (bitmap_[bin / 64] >> (bin % 64) & 1) != 0;
    if (marked != (bins_[bin] != nullptr)) return wrong("bitmap and bins disagree", at);
    for (const Block* b = bins_[bin]; b != nullptr; b = b->bin_next) --cached_blocks;
  }
  if (cached_blocks != 0) return wrong("a bin holds what is not cached", at);
  for (const auto& h : handles_) mapped += h.has_value();
  if (mapped != mapped_granules_) return wrong("mapped granules were miscounted", at);
  return absl::OkStatus();
}

}  // namespace gpuledger
