#include "replay_device.h"

#include <fmt/format.h>

namespace gpuledger::replay {

absl::Status DoesNotFit(const AllocationTrace& trace, std::string_view what, Bytes memory) {
  return absl::InvalidArgumentError(fmt::format("{}: its peak is {}, and {} has {} of memory; --upstream fake needs none",
                                                trace.path, ToString(trace.peak_requested), what, ToString(memory)));
}

absl::Status LostPattern(const LiveBlock& block, uint64_t offset) {
  return absl::DataLossError(
      fmt::format("allocation {} ({}) does not hold at offset {} what was written there: another block had that memory",
                  block.allocation, ToString(block.size), offset));
}

}  // namespace gpuledger::replay
