// allocator/torch/cuda/visiting_streams.h - streams of other devices that use a device's blocks (record_stream).
//
// The allocator's fences are of its own device. So when such a block ends, a stream of its device that does nothing else
// waits for what the visitors have been given, and is recorded on the block in their place.
#pragma once

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include <c10/cuda/CUDAStream.h>

#include "gpuledger/types.h"

namespace gpuledger::pytorch {

// Thread-safe.
class VisitingStreams {
 public:
  void Note(uint64_t block, c10::cuda::CUDAStream visitor);
  [[nodiscard]] bool any() const { return blocks_with_visitors_.load(std::memory_order_relaxed) > 0; }
  // The block is about to end: a stream of `device` that is done when the work is that its visitors have been given by now; null
  // if it had none. Throws what CUDA says, and has forgotten the visitors then. Does not synchronise.
  [[nodiscard]] cudaStream_t StandIn(uint64_t block, c10::DeviceIndex device);

 private:
  std::mutex mutex_;
  absl::flat_hash_map<uint64_t, std::vector<c10::cuda::CUDAStream>> visitors_;  // guarded by mutex_
  cudaStream_t stand_in_ = nullptr;                                             // guarded by mutex_; made at first use
  std::atomic<size_t> blocks_with_visitors_ = 0;
};

}  // namespace gpuledger::pytorch
