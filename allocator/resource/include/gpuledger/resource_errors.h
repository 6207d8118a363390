// gpuledger/resource_errors.h - what MemoryResource throws, where the rest of the project returns a status.
//
//   std::bad_alloc <- AllocationError (a driver's failure) <- OutOfMemoryError (no memory, or more than there can be)
//
// what() is the whole message, for want of memory the allocator's report: top owners, what is cached, what would have
// helped. Copying one allocates nothing and does not throw.
#pragma once

#include <memory>
#include <new>
#include <string>
#include <utility>

#include <absl/status/status.h>

#include "gpuledger/types.h"

namespace gpuledger {

class GPULEDGER_EXPORT AllocationError : public std::bad_alloc {
 public:
  explicit AllocationError(absl::Status status) {
    std::string message(status.message());
    shared_ = std::make_shared<const Shared>(Shared{std::move(status), std::move(message)});
  }
  [[nodiscard]] const char* what() const noexcept override { return shared_->message.c_str(); }
  [[nodiscard]] const absl::Status& status() const noexcept { return shared_->status; }

 private:
  struct Shared {
    absl::Status status;
    std::string message;
  };
  std::shared_ptr<const Shared> shared_;
};

class GPULEDGER_EXPORT OutOfMemoryError : public AllocationError {
 public:
  using AllocationError::AllocationError;
};

// `status` is not OK. kInvalidArgument is what the allocator says of more than 2^62 bytes.
[[noreturn]] inline void ThrowAllocationError(const absl::Status& status) {
  if (absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status)) throw OutOfMemoryError(status);
  throw AllocationError(status);
}

}  // namespace gpuledger
