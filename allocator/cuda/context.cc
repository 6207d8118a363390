#include "context.h"

#include <fmt/format.h>

namespace gpuledger::cuda {

absl::StatusOr<std::unique_ptr<PrimaryContext>> PrimaryContext::Retain(const Driver& driver, int ordinal,
                                                                        std::string_view call) {
  const std::string what = fmt::format("{} of device {}", call, ordinal);
  int count = 0;
  if (const Result result = driver.cuDeviceGetCount(&count); result != kSuccess) {
    return CudaStatus(driver, result, "cuDeviceGetCount", what);
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(
        fmt::format("{}: this process sees {} device{}{}", what, count, count == 1 ? "" : "s", Remedy(kInvalidDevice)));
  }
  Device device = 0;
  if (const Result result = driver.cuDeviceGet(&device, ordinal); result != kSuccess) {
    return CudaStatus(driver, result, "cuDeviceGet", what);
  }
  Context context = nullptr;
  if (const Result result = driver.cuDevicePrimaryCtxRetain(&context, device); result != kSuccess) {
    return CudaStatus(driver, result, "cuDevicePrimaryCtxRetain", what);
  }
  return std::unique_ptr<PrimaryContext>(new PrimaryContext(driver, device, context));
}

PrimaryContext::~PrimaryContext() {
  if (!in_forked_child()) driver_.cuDevicePrimaryCtxRelease(device_);  // at the end of the process it may refuse
}

int PrimaryContext::attribute(Attribute which) const {
  int value = 0;
  return driver_.cuDeviceGetAttribute(&value, which, device_) == kSuccess ? value : 0;
}

Inside::Inside(const PrimaryContext& context) : driver_(context.driver()), forked_(context.in_forked_child()) {
  if (forked_) return;
  // Mostly it is current already: then one call instead of a push and a pop.
  Context current = nullptr;
  if (status_ = driver_.cuCtxGetCurrent(&current); status_ != kSuccess) return;
  if (current != context.context_) {
    if (status_ = driver_.cuCtxPushCurrent(context.context_); status_ != kSuccess) return;
    pushed_ = true;
  }
  if (driver_.cuThreadExchangeStreamCaptureMode(&mode_) != kSuccess) mode_ = kCaptureModeRelaxed;
}

Inside::~Inside() {
  if (!ok()) return;
  if (mode_ != kCaptureModeRelaxed) driver_.cuThreadExchangeStreamCaptureMode(&mode_);
  Context popped = nullptr;
  if (pushed_) driver_.cuCtxPopCurrent(&popped);
}

absl::Status Inside::status(std::string_view what) const {
  if (forked_) return ForkedChild(what);
  return CudaStatus(driver_, status_, "entering the device's primary context", what);
}

}  // namespace gpuledger::cuda
