// allocator/c_status.h - what every C function of this library does around its body: nothing thrown gets out, a Status
// becomes a code, and its message is kept for the thread.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

#include <absl/status/status.h>

#include "gpuledger/gpuledger.h"

namespace gpuledger {

// A T of this thread, null once the thread's own objects are gone: atexit handlers and the destructors of other
// thread-local objects may still call us then.
template <class T>
T* OfThisThread() {
  static thread_local T* value = nullptr;
  static thread_local bool ended = false;
  struct Guard {
    ~Guard() {
      ended = true;
      delete std::exchange(value, nullptr);
    }
  };
  if (value == nullptr && !ended) {
    static thread_local Guard guard;
    (void)&guard;
    value = new T;
  }
  return value;
}

struct ErrorOfThread {
  std::string message;
};
inline const char* LastError() {
  const auto* error = OfThisThread<ErrorOfThread>();
  return error == nullptr ? "an error after this thread's end" : error->message.c_str();
}

inline gpuledger_status ToCStatus(const absl::Status& status) {
  if (status.ok()) return GPULEDGER_OK;
  if (auto* error = OfThisThread<ErrorOfThread>()) error->message = std::string(status.message());
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
