#include "visiting_streams.h"

#include <algorithm>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

namespace gpuledger::pytorch {
namespace {

// Makes `waiting`, a stream of `device`, wait for all that `visitor` has been given. What a graph under capture uses lives as
// long as the graph's pool does, and an event would become part of the graph.
void WaitFor(c10::cuda::CUDAStream visitor, cudaStream_t waiting, c10::DeviceIndex device) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(visitor.stream(), &capture));
  if (capture != cudaStreamCaptureStatusNone) return;
  cudaEvent_t event = nullptr;
  {
    const c10::cuda::CUDAGuard there(visitor.device_index());
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    C10_CUDA_CHECK(cudaEventRecord(event, visitor.stream()));
  }
  const c10::cuda::CUDAGuard here(device);
  const cudaError_t waits = cudaStreamWaitEvent(waiting, event, 0);
  C10_CUDA_CHECK(cudaEventDestroy(event));  // CUDA keeps it for as long as it is waited for
  C10_CUDA_CHECK(waits);
}

}  // namespace

void VisitingStreams::Note(uint64_t block, c10::cuda::CUDAStream visitor) {
  const std::lock_guard lock(mutex_);
  std::vector<c10::cuda::CUDAStream>& of_block = visitors_[block];
  if (std::find(of_block.begin(), of_block.end(), visitor) == of_block.end()) of_block.push_back(visitor);
  blocks_with_visitors_.store(visitors_.size(), std::memory_order_relaxed);
}

cudaStream_t VisitingStreams::StandIn(uint64_t block, c10::DeviceIndex device) {
  const std::lock_guard lock(mutex_);
  const auto found = visitors_.find(block);
  if (found == visitors_.end()) return nullptr;
  const std::vector<c10::cuda::CUDAStream> visitors = std::move(found->second);
  visitors_.erase(found);
  blocks_with_visitors_.store(visitors_.size(), std::memory_order_relaxed);
  if (stand_in_ == nullptr) {
    const c10::cuda::CUDAGuard here(device);
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stand_in_, cudaStreamNonBlocking));
  }
  for (const c10::cuda::CUDAStream& visitor : visitors) WaitFor(visitor, stand_in_, device);
  return stand_in_;
}

}  // namespace gpuledger::pytorch
