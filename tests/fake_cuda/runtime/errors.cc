// Errors: names come from a table that the build makes of the toolkit's own driver_types.h, sentences from the driver.
#include <algorithm>
#include <iterator>

#include "state.h"

namespace fake_cudart {
namespace {

struct NamedError {
  int code;
  const char* name;
};

constexpr NamedError kErrors[] = {
#include "error_names.inc"
};

const char* Name(cudaError_t error) {
  const auto* found =
      std::find_if(std::begin(kErrors), std::end(kErrors), [&](const NamedError& e) { return e.code == error; });
  return found != std::end(kErrors) ? found->name : nullptr;
}

// What only a runtime says; the driver has no sentence for it.
const char* RuntimeSentence(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidPitchValue:
      return "invalid pitch argument";
    case cudaErrorInvalidSymbol:
      return "invalid device symbol";
    case cudaErrorInvalidMemcpyDirection:
      return "invalid copy direction for memcpy";
    case cudaErrorInsufficientDriver:
      return "no CUDA driver was found, or it is older than this runtime";
    case cudaErrorMissingConfiguration:
      return "a kernel was launched without a launch configuration";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    default:
      return Name(error);
  }
}

}  // namespace
}  // namespace fake_cudart

using namespace fake_cudart;

FAKE_CUDART_EXPORT cudaError_t cudaGetLastError() { return TakeLastError(); }
FAKE_CUDART_EXPORT cudaError_t cudaPeekAtLastError() { return LastError(); }

FAKE_CUDART_EXPORT const char* cudaGetErrorName(cudaError_t error) {
  const char* name = Name(error);
  return name != nullptr ? name : "unrecognized error code";
}

FAKE_CUDART_EXPORT const char* cudaGetErrorString(cudaError_t error) {
  const Driver* driver = LoadDriver();
  const char* sentence = nullptr;
  if (driver != nullptr && driver->GetErrorString(static_cast<CUresult>(error), &sentence) == CUDA_SUCCESS)
    return sentence;
  sentence = RuntimeSentence(error);
  return sentence != nullptr ? sentence : "unrecognized error code";
}
