// Memory of one device used by another.
#include "peer_access.h"

#include <algorithm>

#include <fmt/format.h>

#include "cuda_upstream_state.h"

namespace gpuledger {

namespace cuda {

absl::StatusOr<Device> FindPeer(const PrimaryContext& owner, DeviceId peer, std::string_view call) {
  const Driver& driver = owner.driver();
  const std::string what = fmt::format("{} of device {} to the memory of device {}", call, peer.value(), owner.device());
  int count = 0, can = 0;
  Device device = 0;
  if (const Result result = driver.cuDeviceGetCount(&count); result != kSuccess) {
    return CudaStatus(driver, result, "cuDeviceGetCount", what);
  }
  if (peer.value() < 0 || peer.value() >= count) {
    return absl::InvalidArgumentError(
        fmt::format("{}: this process sees {} device{}{}", what, count, count == 1 ? "" : "s", Remedy(kInvalidDevice)));
  }
  if (const Result result = driver.cuDeviceGet(&device, peer.value()); result != kSuccess) {
    return CudaStatus(driver, result, "cuDeviceGet", what);
  }
  if (device == owner.device()) return device;
  if (const Result result = driver.cuDeviceCanAccessPeer(&can, device, owner.device()); result != kSuccess) {
    return CudaStatus(driver, result, "cuDeviceCanAccessPeer", what);
  }
  if (can == 0) {
    return absl::UnimplementedError(fmt::format(
        "{}: the driver knows no way between them (nvidia-smi topo -p2p rw lists which devices have one); copy through the host",
        what));
  }
  return device;
}

}  // namespace cuda

absl::Status CudaUpstream::AllowPeer(DeviceId peer) {
  constexpr std::string_view kCall = "CudaUpstream::AllowPeer";
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status(kCall);
  const absl::StatusOr<cuda::Device> device = cuda::FindPeer(*s.context, peer, kCall);
  if (!device.ok()) return device.status();
  MutexLock lock(s.mutex);
  const auto has = [&](const cuda::AccessDescription& access) { return access.location.id == *device; };
  if (std::any_of(s.access.begin(), s.access.end(), has)) return absl::OkStatus();
  const cuda::AccessDescription access = {{cuda::kLocationTypeDevice, *device}, cuda::kAccessReadWrite};
  if (s.capabilities.mapping) {
    for (const auto& [address, mapping] : s.books.mappings()) {
      const cuda::Result result = s.driver().cuMemSetAccess(address, mapping.size.count(), &access, 1);
      if (result != cuda::kSuccess) {
        return s.Said(result, "cuMemSetAccess", fmt::format("{} of device {} at {:#x}", kCall, peer.value(), address));
      }
    }
  } else {
    // What cuMemAlloc gives is opened to a whole context, by that context.
    absl::StatusOr<std::unique_ptr<cuda::PrimaryContext>> context =
        cuda::PrimaryContext::Retain(s.driver(), peer.value(), kCall);
    if (!context.ok()) return context.status();
    const cuda::Inside inside_peer(**context);
    if (!inside_peer.ok()) return inside_peer.status(kCall);
    const cuda::Result result = s.driver().cuCtxEnablePeerAccess(s.context->raw(), 0);
    if (result != cuda::kSuccess && result != cuda::kPeerAccessAlreadyEnabled) {
      return s.Said(result, "cuCtxEnablePeerAccess", fmt::format("{} of device {}", kCall, peer.value()));
    }
    s.peer_contexts.push_back(*std::move(context));
  }
  s.access.push_back(access);
  return absl::OkStatus();
}

}  // namespace gpuledger
