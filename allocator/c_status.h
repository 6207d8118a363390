// allocator/c_status.h - what every C function of this library does around its body: nothing thrown gets out, a Status
// becomes a code, and its message is kept for the thread.
#pragma once

#include <exception>
#include <string>

#include <absl/status/status.h>

#include "gpuledger/gpuledger.h"

namespace gpuledger {

inline std::string& LastError() {
  thread_local std::string message;
  return message;
}

inline gpuledger_status ToCStatus(const absl::Status& status) {
  if (status.ok()) return GPULEDGER_OK;
  LastError() = std::string(status.message());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument: return GPULEDGER_INVALID_ARGUMENT;
    case absl::StatusCode::kResourceExhausted: return GPULEDGER_OUT_OF_MEMORY;
    case absl::StatusCode::kNotFound: return GPULEDGER_NOT_FOUND;
    case absl::StatusCode::kFailedPrecondition: return GPULEDGER_FAILED_PRECONDITION;
    default: return GPULEDGER_INTERNAL;
  }
}

// Runs `body`, which returns an absl::Status.
template <class Body>
gpuledger_status Guard(Body body) noexcept {
  try {
    return ToCStatus(body());
  } catch (const std::bad_alloc&) {
    return ToCStatus(absl::ResourceExhaustedError("the host is out of memory"));
  } catch (const std::exception& e) {
    return ToCStatus(absl::InternalError(e.what()));
  } catch (...) {
    return ToCStatus(absl::InternalError("an exception of unknown type"));
  }
}

}  // namespace gpuledger
