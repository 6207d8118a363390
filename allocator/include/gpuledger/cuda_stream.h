// gpuledger/cuda_stream.h - a CUDA stream with plain work on it, for a program that has no CUDA of its own.
//
// Fills and copies, enough to put something into blocks of a CudaUpstream and to look whether it is still there
// (`gpuledger replay`). Like the upstream it finds the driver at run time and works in the device's primary context.
//
// Thread-safe. Errors: kInternal for a driver's failure, kFailedPrecondition in a forked child.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/types.h"

namespace gpuledger {

class GPULEDGER_EXPORT CudaStream {
 public:
  // A stream that does not wait for the legacy default stream. Errors: those of CudaUpstream::Open too.
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create(DeviceId device);
  // Waits for its work. An allocator that has seen it must be gone by then.
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  [[nodiscard]] Stream stream() const;
  // Queues that `count` words at `address`, a multiple of 4, become `word`. Does not wait.
  absl::Status Fill(DevicePtr address, uint32_t word, uint64_t count);
  // Queues a copy to host memory, which must live until Wait. May wait.
  absl::Status Read(DevicePtr address, std::span<std::byte> into);
  // Waits until all work that was queued is done.
  absl::Status Wait();

 private:
  struct State;
  explicit CudaStream(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace gpuledger
