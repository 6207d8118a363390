#include "gpuledger/c_status.h"

#include <string>

#include "this_thread.h"

namespace gpuledger {
namespace {

struct ErrorOfThread {
  std::string message;
};

}  // namespace

void SetLastError(std::string_view message) {
  if (auto* error = OfThisThread<ErrorOfThread>()) error->message = message;
}

gpuledger_status ToCStatus(const absl::Status& status) {
  if (status.ok()) return GPULEDGER_OK;
  SetLastError(std::string_view(status.message().data(), status.message().size()));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument: return GPULEDGER_INVALID_ARGUMENT;
    case absl::StatusCode::kResourceExhausted: return GPULEDGER_OUT_OF_MEMORY;
    case absl::StatusCode::kNotFound: return GPULEDGER_NOT_FOUND;
    case absl::StatusCode::kFailedPrecondition: return GPULEDGER_FAILED_PRECONDITION;
    default: return GPULEDGER_INTERNAL;
  }
}

}  // namespace gpuledger

const char* gpuledger_last_error(void) noexcept {
  const auto* error = gpuledger::OfThisThread<gpuledger::ErrorOfThread>();
  return error == nullptr ? "an error after this thread's end" : error->message.c_str();
}
