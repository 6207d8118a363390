// allocator/cuda/cuda_upstream_state.h - what a CudaUpstream holds, for the files that its calls are spread over.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "context.h"
#include "fences.h"
#include "gpuledger/cuda_upstream.h"
#include "ipc_handles.h"
#include "sync.h"
#include "upstream_books.h"

namespace gpuledger {

struct CudaUpstream::State {
  State(std::unique_ptr<cuda::PrimaryContext> its_context, DeviceId device, Bytes total, Bytes granularity,
        bool mapping, const CudaOptions& its_options)
      : context(std::move(its_context)),
        options(its_options),
        capabilities({.aliasing = mapping, .host_accessible = false, .mapping = mapping, .survives_fork = false}),
        books(device, total, granularity, capabilities),
        access({{{cuda::kLocationTypeDevice, context->device()}, cuda::kAccessReadWrite}}),
        fences(*context, device) {}

  [[nodiscard]] const cuda::Driver& driver() const { return context->driver(); }
  absl::Status Said(cuda::Result result, std::string_view call, std::string_view what) const {
    return cuda::CudaStatus(driver(), result, call, what);
  }
  // Addresses with memory, a multiple of the granularity.
  absl::StatusOr<uint64_t> BuyRange(Bytes size) GPULEDGER_REQUIRES(mutex);
  // A handle as other processes get it. Its descriptor is made once, and open as long as the handle is there.
  struct Exported {
    cuda::Descriptor descriptor;
    uint64_t number;
  };
  absl::StatusOr<cuda::SharedHandle> ExportHandle(HandleId handle) GPULEDGER_REQUIRES(mutex);

  const std::unique_ptr<cuda::PrimaryContext> context;
  const CudaOptions options;
  const Capabilities capabilities;
  mutable Mutex mutex;  // held during the driver's calls too: what is mapped where changes in one step
  UpstreamBooks books GPULEDGER_GUARDED_BY(mutex);
  // What cuMemAlloc returned, by the base of the range that was cut out of it.
  std::map<uint64_t, cuda::Address> bought GPULEDGER_GUARDED_BY(mutex);
  // Who may use what is mapped: the device itself, then its peers.
  std::vector<cuda::AccessDescription> access GPULEDGER_GUARDED_BY(mutex);
  // Where ranges are bought whole, the peers' contexts: access holds between two contexts as long as both are there.
  std::vector<std::unique_ptr<cuda::PrimaryContext>> peer_contexts GPULEDGER_GUARDED_BY(mutex);
  absl::flat_hash_map<HandleId, Exported> exported GPULEDGER_GUARDED_BY(mutex);
  cuda::Fences fences;
};

}  // namespace gpuledger
