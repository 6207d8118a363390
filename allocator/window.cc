// Where a pool grows: windows over free space (README.md, "Placement").
//
// A cached block that is large enough would have been found by the fast path, so only runs that hold unmapped space are
// searched, from the list of unmapped blocks: the cost follows the holes, not the blocks.
#include <algorithm>

#include "pool.h"

namespace gpuledger {
namespace {

// One piece of a run, and the unmapped bytes of the run before it.
struct RunPiece {
  const Block* block;
  Bytes unmapped_before;
};

// Unmapped bytes of the run below `offset`.
Bytes UnmappedBelow(const std::vector<RunPiece>& run, Bytes offset) {
  auto next = std::upper_bound(run.begin(), run.end(), offset, [](Bytes at, const RunPiece& p) { return at < p.block->offset; });
  if (next == run.begin()) return Bytes();
  const RunPiece& piece = *std::prev(next);
  if (!piece.block->unmapped()) return piece.unmapped_before;
  return piece.unmapped_before + (std::min(offset, piece.block->end()) - piece.block->offset);
}

bool Free(const Block* block) { return block != nullptr && (block->cached() || block->unmapped()); }

}  // namespace

std::optional<Window> Pool::FindWindow(Bytes size) const {
  std::optional<Window> best;
  Bytes searched;
  for (const auto& [offset, block] : unmapped_) {
    if (offset >= searched) searched = SearchRun(block, size, best);
  }
  return best;
}

Bytes Pool::SearchRun(const Block* inside, Bytes size, std::optional<Window>& best) const {
  const Block* first = inside;
  while (Free(first->left)) first = first->left;
  std::vector<RunPiece> run;
  Bytes unmapped;
  for (const Block* b = first; Free(b); b = b->right) {
    run.push_back({b, unmapped});
    if (b->unmapped()) unmapped += b->size;
  }
  const Bytes begin = first->offset, end = run.back().block->end();
  if (end - begin < size) return end;

  // Unmapped pieces are multiples of the granularity, and so is a window's part of one.
  const auto consider = [&](Bytes offset) {
    if (offset < begin || offset > end - size) return;
    const Bytes window_end = std::min((offset + size).RoundUpTo(granularity_), end);
    const Bytes missing = UnmappedBelow(run, window_end) - UnmappedBelow(run, offset.RoundDownTo(granularity_));
    if (!best || missing < best->missing || (missing == best->missing && offset < best->offset)) best = Window{offset, missing};
  };
  // The fewest are missing where a window begins or ends with a cached piece, or at an end of the run.
  consider(begin);
  consider(end - size);
  for (const RunPiece& piece : run) {
    if (!piece.block->cached()) continue;
    consider(piece.block->offset);
    if (piece.block->end() >= size) consider(piece.block->end() - size);
  }
  return end;
}

std::optional<Window> Pool::OpenEnd(Bytes size) const {
  if (unmapped_.empty()) return std::nullopt;
  const Block* last = unmapped_.rbegin()->second;
  if (last->end() != range_.size) return std::nullopt;
  const Bytes begin = last->left != nullptr && last->left->cached() ? last->left->offset : last->offset;
  if (range_.size - begin < size) return std::nullopt;
  const Bytes end = (begin + size).RoundUpTo(granularity_);
  return Window{begin, end > last->offset ? end - last->offset : Bytes()};
}

std::vector<Gap> Pool::Gaps(Bytes offset, Bytes size) const {
  const Bytes begin = offset.RoundDownTo(granularity_), end = (offset + size).RoundUpTo(granularity_);
  std::vector<Gap> gaps;
  auto next = unmapped_.upper_bound(begin);
  if (next != unmapped_.begin()) --next;
  for (; next != unmapped_.end() && next->first < end; ++next) {
    const Block& block = *next->second;
    const Bytes from = std::max(begin, block.offset), to = std::min(end, block.end());
    if (from < to) gaps.push_back({{from, to - from}, {block.offset, block.size}});
  }
  return gaps;
}

}  // namespace gpuledger
