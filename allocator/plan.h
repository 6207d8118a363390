// allocator/plan.h - which handles fill the gaps of a window: new ones, and donors.
//
// Pure arithmetic: no pool, no upstream. Donors come in the order in which they should go.
#pragma once

#include <optional>
#include <vector>

#include "pool.h"

namespace gpuledger {

// How many bytes may be created.
struct Budget {
  Bytes gate;   // without asking donors
  Bytes limit;  // at all; at least `gate`
};

// What new handles look like.
struct HandleShape {
  Bytes granularity;
  Bytes largest;  // a handle is a power of two of granularities, and the largest is at least one
};

// One handle of a plan: `donor` of the list, or a new one.
struct Piece {
  static constexpr size_t kNew = ~size_t{0};
  Bytes offset;
  Bytes size;
  size_t donor = kNew;
};

struct Plan {
  std::vector<Piece> pieces;  // lowest offset first
  Bytes created;
};

// Fills the gaps; none if limit and donors do not suffice. No more donors than the gate leaves to them, and more than
// `budget.gate` is created only when no donor is left that fits.
[[nodiscard]] std::optional<Plan> FillGaps(const std::vector<Gap>& gaps, const std::vector<FreeHandle>& donors, Budget budget,
                                           HandleShape shape);

// The largest handle that a pool makes: a power of two of granularities, at most the larger of peak / 512 and
// missing / 16, in the small pools one granularity.
[[nodiscard]] Bytes LargestHandle(PoolKind kind, Bytes granularity, Bytes peak, Bytes missing);

}  // namespace gpuledger
