#include "plan.h"

#include <algorithm>
#include <bit>

namespace gpuledger {
namespace {

// A gap while it is being filled: its donors from the low end, then new handles, then perhaps one donor that is too large
// for what is left and reaches into the room beside.
struct Filling {
  const Gap* gap;
  Bytes left;                  // not yet covered by a donor
  std::vector<size_t> donors;  // that fit in
  size_t spilling = Piece::kNew;
  Bytes spilling_covers;
};

Bytes PowerOfTwo(Bytes granularity, Bytes at_most) {
  return granularity * std::bit_floor(std::max(at_most / granularity, uint64_t{1}));
}

// A donor larger than what is left fits if the room goes on far enough above; or below, if it is alone.
bool SpillsAbove(const Filling& f, Bytes size) { return f.gap->room.end() - f.gap->needed.end() >= size - f.left; }
bool SpillsBelow(const Filling& f, Bytes size) {
  return f.donors.empty() && f.left == f.gap->needed.size && f.gap->needed.end() - f.gap->room.offset >= size;
}

}  // namespace

Bytes LargestHandle(PoolKind kind, Bytes granularity, Bytes peak, Bytes missing) {
  if (kind == PoolKind::kSmall) return granularity;
  return PowerOfTwo(granularity, std::max(peak / 512u, missing / 16u));
}

std::optional<Plan> FillGaps(const std::vector<Gap>& gaps, const std::vector<FreeHandle>& donors, Budget budget, HandleShape shape) {
  Bytes missing, covered;
  std::vector<Filling> fillings;
  for (const Gap& gap : gaps) {
    missing += gap.needed.size;
    fillings.push_back({&gap, gap.needed.size, {}, Piece::kNew, {}});
  }
  const Bytes rest = missing - std::min(missing, budget.gate);

  // Donors that fit into a gap, each into the tightest.
  std::vector<char> used(donors.size(), 0);
  for (size_t i = 0; i < donors.size() && covered < rest; ++i) {
    Filling* tightest = nullptr;
    for (Filling& f : fillings) {
      if (f.left >= donors[i].handle.size && (tightest == nullptr || f.left < tightest->left)) tightest = &f;
    }
    if (tightest == nullptr) continue;
    tightest->donors.push_back(i);
    tightest->left -= donors[i].handle.size;
    covered += donors[i].handle.size;
    used[i] = 1;
  }
  // Then those that reach beyond one.
  for (size_t i = 0; i < donors.size() && covered < rest; ++i) {
    if (used[i] != 0) continue;
    const Bytes size = donors[i].handle.size;
    for (Filling& f : fillings) {
      if (f.left.is_zero() || f.spilling != Piece::kNew || size < f.left || !(SpillsAbove(f, size) || SpillsBelow(f, size))) continue;
      f.spilling = i;
      f.spilling_covers = f.left;
      covered += f.left;
      f.left = Bytes();
      break;
    }
  }
  // Surplus donors stay where they are: the gate allows for what they would have covered.
  for (Filling& f : fillings) {
    std::erase_if(f.donors, [&](size_t i) {
      const Bytes size = donors[i].handle.size;
      if (covered <= rest || size > covered - rest) return false;
      covered -= size;
      f.left += size;
      return true;
    });
  }
  if (missing - covered > budget.limit) return std::nullopt;

  Plan plan;
  for (const Filling& f : fillings) {
    Bytes at = f.gap->needed.offset;
    const auto add = [&](Bytes size, size_t donor) {
      plan.pieces.push_back({at, size, donor});
      at += size;
    };
    for (const size_t i : f.donors) add(donors[i].handle.size, i);
    for (Bytes left = f.left; !left.is_zero();) {
      const Bytes size = std::min(shape.largest, PowerOfTwo(shape.granularity, left));
      add(size, Piece::kNew);
      plan.created += size;
      left -= size;
    }
    if (f.spilling == Piece::kNew) continue;
    const Bytes size = donors[f.spilling].handle.size;
    if (at + size > f.gap->room.end()) at = f.gap->needed.end() - size;
    add(size, f.spilling);
  }
  return plan;
}

}  // namespace gpuledger
