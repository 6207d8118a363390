// torch_guard.h - the C boundary of the LibTorch part: statuses and exceptions become codes and a sentence.
#pragma once

#include <exception>
#include <new>
#include <string_view>

#include <absl/status/status.h>

#include "gpuledger/c_status.h"
#include "gpuledger/gpuledger_torch.h"

namespace gpuledger::pytorch {

inline int CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk: return GPULEDGER_TORCH_OK;
    case absl::StatusCode::kInvalidArgument: return GPULEDGER_TORCH_INVALID_ARGUMENT;
    case absl::StatusCode::kFailedPrecondition: return GPULEDGER_TORCH_SHARED;
    case absl::StatusCode::kPermissionDenied: return GPULEDGER_TORCH_NOT_OURS;
    case absl::StatusCode::kResourceExhausted: return GPULEDGER_TORCH_OUT_OF_MEMORY;
    default: return GPULEDGER_TORCH_INTERNAL;
  }
}

template <class Body>
int TorchGuard(Body&& body) noexcept {
  try {
    const absl::Status status = body();
    if (!status.ok()) SetLastError(std::string_view(status.message().data(), status.message().size()));
    return CodeOf(status);
  } catch (const std::bad_alloc&) {
    SetLastError("the host is out of memory");
    return GPULEDGER_TORCH_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    SetLastError(error.what());
  } catch (...) {
    SetLastError("an unknown exception");
  }
  return GPULEDGER_TORCH_INTERNAL;
}

}  // namespace gpuledger::pytorch
