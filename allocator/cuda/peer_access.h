// allocator/cuda/peer_access.h - whether one device can reach the memory of another.
#pragma once

#include <string_view>

#include <absl/status/statusor.h>

#include "context.h"
#include "gpuledger/types.h"

namespace gpuledger::cuda {

// The device `peer`, if it can reach the memory of `owner`'s device. kInvalidArgument if it is not there, kUnimplemented if it
// cannot. `call` is who asks, for errors.
absl::StatusOr<Device> FindPeer(const PrimaryContext& owner, DeviceId peer, std::string_view call);

}  // namespace gpuledger::cuda
