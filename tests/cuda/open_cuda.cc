// Opens device 0 and says how it went: "open", or the error. The upstream ends after main(), with something mapped.
// `open_cuda DEVICE` then allows that device the memory: "allowed", or the error.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "gpuledger/cuda_upstream.h"

namespace {

std::unique_ptr<gpuledger::CudaUpstream>& Upstream() {
  static std::unique_ptr<gpuledger::CudaUpstream> upstream;
  return upstream;
}

}  // namespace

int main(int argc, char** argv) {
  Upstream();
  absl::StatusOr<std::unique_ptr<gpuledger::CudaUpstream>> opened =
      gpuledger::CudaUpstream::Open(gpuledger::DeviceId(0));
  std::printf("%s\n", opened.ok() ? "open" : opened.status().ToString().c_str());
  if (!opened.ok()) return 3;
  Upstream() = *std::move(opened);
  if (argc > 1) {
    const absl::Status peer = Upstream()->AllowPeer(gpuledger::DeviceId(std::atoi(argv[1])));
    std::printf("%s\n", peer.ok() ? "allowed" : peer.ToString().c_str());
  }
  const auto range = Upstream()->Reserve(Upstream()->granularity());
  const auto handle = Upstream()->CreateHandle(Upstream()->granularity());
  if (!range.ok() || !handle.ok() || !Upstream()->Map(range->base, *handle).ok()) return 1;
  return Upstream()->RecordFence(gpuledger::Stream::Default(gpuledger::DeviceId(0))).ok() ? 0 : 1;
}
