// allocator/torch/cuda/snapshot.h - memory as torch.cuda.memory_snapshot() shows it: segments, their blocks, and the history.
//
// A segment is what is mapped without a gap in one range; its blocks tile it. Unmapped addresses are left out. (Format:
// reference of torch.cuda._memory_viz, c10/core/CachingDeviceAllocator.h.)
#pragma once

#include <vector>

#include "devices.h"

namespace gpuledger::pytorch {

using c10::cuda::CUDACachingAllocator::SnapshotInfo;

// Of one pool, or {0, 0}: of all. The entry that says that there was a snapshot is in every history.
[[nodiscard]] SnapshotInfo Snapshot(Devices& devices, MempoolId_t pool, bool include_traces);

// Times of entries are of this clock.
[[nodiscard]] c10::ApproximateClockToUnixTimeConverter& Clock();

// What torch.profiler's record_function says while history is on; kept as long as entries are.
void Annotate(const std::vector<std::pair<std::string, std::string>>& annotation);
void ConfigureAnnotations(bool enabled, size_t most_entries, bool clear);
[[nodiscard]] bool AnnotationsEnabled();

// The part of a range that is mapped without a gap around the address, in bytes; none if nothing is mapped there.
[[nodiscard]] std::optional<Range> SegmentAt(Device& device, uint64_t address);

}  // namespace gpuledger::pytorch
