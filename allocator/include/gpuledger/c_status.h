// gpuledger/c_status.h - what every C function of this library does around its body: nothing thrown gets out, a Status
// becomes a code, and its message is kept for the thread (gpuledger_last_error). For the C functions of all layers.
#pragma once

#include <exception>
#include <new>
#include <string_view>

#include <absl/status/status.h>

#include "gpuledger/gpuledger.h"
#include "gpuledger/types.h"

namespace gpuledger {

// What gpuledger_last_error says on this thread from now on. Nothing, once the thread's own objects are gone.
GPULEDGER_EXPORT void SetLastError(std::string_view message);
// The code of a status; its message becomes the last error. kOk leaves that alone.
GPULEDGER_EXPORT gpuledger_status ToCStatus(const absl::Status& status);

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
