// allocator/cuda/driver.h - NVIDIA's driver, found at run time: nothing of CUDA is linked, and a program starts without
// it.
#pragma once

#include <string>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "driver_api.h"

namespace gpuledger::cuda {

// The driver's functions, each at the version that driver_api.h describes.
struct Driver {
#define GPULEDGER_CUDA_MEMBER(name, version, parameters) Result(*name) parameters = nullptr;
  GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_CUDA_MEMBER)
  GPULEDGER_CUDA_OPTIONAL_FUNCTIONS(GPULEDGER_CUDA_MEMBER)
#undef GPULEDGER_CUDA_MEMBER
  int version = 0;          // 13000 for CUDA 13.0
  uint32_t generation = 0;  // ForkGeneration() when it was initialised
};

// The driver, loaded and initialised; kUnavailable with a remedy if there is none, it is too old, or it has no device.
// A success is kept for the process, a failure is tried again. Never unloaded: what is freed after main() still finds
// it.
absl::StatusOr<const Driver*> LoadDriver();

// What `call` returned, with its name and a remedy where one is known: "Map of ...: cuMemMap failed with
// CUDA_ERROR_X (n); remedy". kResourceExhausted when memory ran out, kInternal otherwise; OK for kSuccess.
absl::Status CudaStatus(const Driver& driver, Result result, std::string_view call, std::string_view what);

// "; " and the way out, or nothing.
std::string_view Remedy(Result result);

// The driver is gone or its context is: at the end of a process there is nothing left to give back to.
constexpr bool IsTeardown(Result result) {
  return result == kDeinitialized || result == kContextIsDestroyed || result == kInvalidContext;
}

// How often this process has been forked, counted in the child: CUDA works only in the process that initialised it.
uint32_t ForkGeneration();
absl::Status ForkedChild(std::string_view what);

}  // namespace gpuledger::cuda
