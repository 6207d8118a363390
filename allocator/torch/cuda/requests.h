// allocator/torch/cuda/requests.h - what PYTORCH_ALLOC_CONF says of a request: honoured, or answered with one line.
//
// PyTorch parses the variable itself (c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h) and refuses unknown keys.
//   honoured   roundup_power2_divisions, per_process_memory_fraction, all of pinned memory (not ours)
//   as asked   expandable_segments: segments always expand here; release_lock_on_cudamalloc: no lock of the hot path is held
//   one line   max_split_size_mb, max_non_split_rounding_mb, garbage_collection_threshold, large_segment_size_mb,
//              expandable_segments:False, graph_capture_record_stream_reuse: what they are there for does not arise
#pragma once

#include <cstddef>
#include <string>

#include "gpuledger/types.h"

namespace gpuledger::pytorch {

// How large the block of a request is made, at least: by roundup_power2_divisions, and for `whole` ones a multiple of 2 MiB.
[[nodiscard]] Bytes RoomFor(size_t size, bool whole);
// PYTORCH_NO_CUDA_MEMORY_CACHING is set: each tensor is a cudaMalloc of its own.
[[nodiscard]] bool CachingSwitchedOff();
[[nodiscard]] double ConfiguredMemoryFraction();
// As memory_stats() shows it; -1 for no limit.
[[nodiscard]] int64_t MaxSplitSize();
// One line for each key that is set and not honoured; empty if there is none.
[[nodiscard]] std::string UnhonouredSettings();

}  // namespace gpuledger::pytorch
