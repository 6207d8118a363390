#include <algorithm>
#include <cmath>

#include "replay.h"

namespace gpuledger::replay {
namespace {

constexpr Bytes kStep = Bytes(uint64_t{2} << 20);

}  // namespace

absl::StatusOr<Bytes> SmallestCap(const AllocationTrace& trace, Bytes peak_reserved, int threads,
                                  const RowProgress& progress) {
  const uint64_t rows = trace.rows.size();
  uint64_t runs = 0, expected = 1;
  const auto completes = [&](uint64_t steps) -> absl::StatusOr<bool> {
    const auto device = MakeFakeDevice(trace);
    const absl::StatusOr<ReplayResult> result =
        Replay(trace, *device, {.cap = kStep * steps, .threads = threads}, [&](uint64_t done, uint64_t) {
          return !progress || progress(runs * rows + done, std::max(expected, runs + 1) * rows);
        });
    ++runs;
    if (!result.ok()) return result.status();
    return result->completed;
  };

  // `fails` is too little, or less than what is requested; `works` completes.
  uint64_t fails = trace.peak_requested.RoundUpTo(kStep) / kStep - 1;
  uint64_t works = std::max(peak_reserved.RoundUpTo(kStep) / kStep, fails + 1);
  expected = 1 + static_cast<uint64_t>(std::ceil(std::log2(static_cast<double>(works - fails))));
  // A cap may change how an allocator places blocks: that its uncapped peak suffices is tried as well.
  for (uint64_t more = 1;; more *= 2) {
    const absl::StatusOr<bool> completed = completes(works);
    if (!completed.ok()) return completed.status();
    if (*completed) break;
    fails = works;
    works += more;
  }
  while (works - fails > 1) {
    const uint64_t middle = fails + (works - fails) / 2;
    const absl::StatusOr<bool> completed = completes(middle);
    if (!completed.ok()) return completed.status();
    (*completed ? works : fails) = middle;
  }
  return kStep * works;
}

}  // namespace gpuledger::replay
