// allocator/torch/cuda/checkpoint.h - the blocks of a private pool, remembered and put back: what trees of CUDA graphs need.
//
// A graph expects its inputs where they were when it was captured. Before another path through the tree is captured or
// replayed, the pool is brought back to what it was at that point: blocks that live now are freed, those of then are in use
// again at their addresses.
#pragma once

#include <memory>
#include <unordered_set>

#include "devices.h"

namespace gpuledger::pytorch {

using c10::cuda::CUDACachingAllocator::AllocatorState;
using c10::cuda::CUDACachingAllocator::CheckpointDelta;

// Throws if there is no such pool.
[[nodiscard]] std::shared_ptr<AllocatorState> CheckpointOf(Device& device, MempoolId_t pool);
// What was freed, and what is in use again: the caller's, with `deleter`. Throws, and has freed, if a block cannot be put back.
[[nodiscard]] CheckpointDelta Restore(Device& device, AllocatorState& state, c10::DeleterFnPtr deleter);
// Whether the pool's blocks in use are these.
[[nodiscard]] bool LiveAre(Device& device, MempoolId_t pool, const std::unordered_set<void*>& expected);

}  // namespace gpuledger::pytorch
