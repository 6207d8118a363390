#include "plugged_upstream.h"

#include <algorithm>

#include <fmt/format.h>

#include <c10/core/DeviceGuard.h>

namespace gpuledger::pytorch {
namespace {

// What `call` threw, as a status.
template <class Call>
absl::Status Caught(Call call) {
  try {
    call();
    return absl::OkStatus();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("the plugged allocator has no memory");
  } catch (const std::exception& error) {
    return absl::InternalError(fmt::format("the plugged allocator failed: {}", error.what()));
  }
}

}  // namespace

absl::StatusOr<Range> PluggedUpstream::Reserve(Bytes size) {
  if (size.is_zero() || !(size % granularity()).is_zero()) {
    return absl::InvalidArgumentError(fmt::format("Reserve of {}: ranges are multiples of {}", ToString(size), ToString(granularity())));
  }
  if (!budget_.Take(size)) return absl::ResourceExhaustedError(fmt::format("the memory fraction does not allow {} more", ToString(size)));
  absl::StatusOr<Range> bought = Buy(size);
  if (!bought.ok()) budget_.GiveBack(size);
  return bought;
}

absl::StatusOr<Range> PluggedUpstream::Buy(Bytes size) {
  const c10::DeviceGuard guard(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device().value())));
  void* memory = nullptr;
  if (absl::Status status = Caught([&] { memory = allocator_->raw_alloc(size.count()); }); !status.ok()) return status;
  const auto address = reinterpret_cast<uint64_t>(memory);
  if (memory == nullptr) return absl::ResourceExhaustedError(fmt::format("the plugged allocator has no {}", ToString(size)));
  if (address % SizeClass::kGranule.count() != 0) {
    Caught([&] { allocator_->raw_delete(memory); }).IgnoreError();
    return absl::InternalError(fmt::format("the plugged allocator gave memory at {:#x}; it has to be a multiple of 512", address));
  }
  const std::lock_guard lock(mutex_);
  bought_.push_back(address);
  return Range{DevicePtr(device(), address), size};
}

absl::Status PluggedUpstream::Unreserve(Range range) {
  const uint64_t address = range.base.address();
  {
    const std::lock_guard lock(mutex_);
    if (std::erase(bought_, address) == 0) return absl::FailedPreconditionError(fmt::format("Unreserve: no range begins at {:#x}", address));
  }
  budget_.GiveBack(range.size);
  const c10::DeviceGuard guard(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device().value())));
  return Caught([&] { allocator_->raw_delete(reinterpret_cast<void*>(address)); });
}

void PluggedUpstream::VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const {
  const std::lock_guard lock(mutex_);
  visit(bought_.data(), bought_.size() * sizeof(uint64_t));
}

}  // namespace gpuledger::pytorch
