// allocator/torch/cuda/out_of_memory.h - a request that is refused: counted, told to observers, and thrown with a report.
#pragma once

#include <absl/status/status.h>

#include "device.h"

namespace gpuledger::pytorch {

// Throws c10::OutOfMemoryError, in PyTorch's words with our report behind, if `why` is kResourceExhausted; c10::Error
// otherwise. No lock held. What an observer throws goes to the caller in its place.
[[noreturn]] void ThrowRefusal(Device& device, size_t size, cudaStream_t stream, const Call& call, const absl::Status& why);

}  // namespace gpuledger::pytorch
