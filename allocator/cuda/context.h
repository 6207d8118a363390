// allocator/cuda/context.h - the primary context of one device, and being inside it for a few calls.
#pragma once

#include <memory>
#include <string_view>

#include <absl/status/statusor.h>

#include "driver.h"

namespace gpuledger::cuda {

class PrimaryContext {
 public:
  // Retains the primary context of the device with this ordinal, the one that the runtime API and PyTorch use. `call` is who
  // asks, for errors.
  static absl::StatusOr<std::unique_ptr<PrimaryContext>> Retain(const Driver& driver, int ordinal,
                                                                std::string_view call = "CudaUpstream::Open");
  ~PrimaryContext();  // releases it, except in a forked child
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;

  [[nodiscard]] const Driver& driver() const { return driver_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] Context raw() const { return context_; }
  [[nodiscard]] bool in_forked_child() const { return ForkGeneration() != generation_; }
  // The device's attribute; 0 if the driver does not know it.
  [[nodiscard]] int attribute(Attribute which) const;

 private:
  friend class Inside;
  PrimaryContext(const Driver& driver, Device device, Context context)
      : driver_(driver), device_(device), context_(context), generation_(ForkGeneration()) {}

  const Driver& driver_;
  const Device device_;
  const Context context_;
  const uint32_t generation_;
};

// While it lives, the calling thread is inside the context: what was current before is so again afterwards. Calls made
// inside break no stream capture that is going on, in this thread or in another: the thread's capture mode is relaxed.
class Inside {
 public:
  explicit Inside(const PrimaryContext& context);
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

  [[nodiscard]] bool ok() const { return status_ == kSuccess && !forked_; }
  [[nodiscard]] bool teardown() const { return forked_ || IsTeardown(status_); }
  // Why it could not be entered.
  [[nodiscard]] absl::Status status(std::string_view what) const;

 private:
  const Driver& driver_;
  Result status_ = kSuccess;
  bool forked_ = false;
  bool pushed_ = false;
  CaptureMode mode_ = kCaptureModeRelaxed;
};

}  // namespace gpuledger::cuda
