#include "out_of_memory.h"

#include <fmt/format.h>

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include "devices.h"

namespace gpuledger::pytorch {
namespace {

using c10::CachingAllocator::format_size;

struct Figures {
  uint64_t size, total, free;
  std::optional<Bytes> allowed;
  uint64_t allocated, reserved;
};

// The first line is worded as PyTorch's own, which programs look for (c10/cuda/CUDACachingAllocator.cpp).
std::string Message(const Device& device, const Figures& f, std::string_view report) {
  return fmt::format(
      "CUDA out of memory. Tried to allocate {}. GPU {} has a total capacity of {} of which {} is free. {}Of the allocated memory {} is "
      "allocated by PyTorch, and {} is reserved by PyTorch but unallocated.\n{}",
      format_size(f.size), static_cast<int>(device.index()), format_size(f.total), format_size(f.free),
      f.allowed.has_value() ? format_size(f.allowed->count()) + " allowed; " : "", format_size(f.allocated),
      format_size(f.reserved - std::min(f.allocated, f.reserved)), report);
}

}  // namespace

void ThrowRefusal(Device& device, size_t size, cudaStream_t stream, const Call& call, const absl::Status& why) {
  const std::string report(why.message().data(), why.message().size());
  TORCH_CHECK(absl::IsResourceExhausted(why), "gpuledger: ", report);
  const MemoryInfo memory = device.upstream().memory_info();
  Figures f{size, memory.total.count(), memory.free.count(), device.allowed(), 0, 0};
  device.WithLock([&](Statistics& statistics, History& history) {
    statistics.CountOutOfMemory();
    f.allocated = static_cast<uint64_t>(statistics.allocated());
    f.reserved = static_cast<uint64_t>(statistics.reserved());
    try {
      history.Note(TraceEntry::OOM, f.free, size, stream, call.pool(), call.context());
    } catch (...) {
      Call::Keep(std::current_exception());
    }
  });
  c10::reportOutOfMemoryToProfiler(static_cast<int64_t>(size), f.allocated, f.reserved, c10::Device(c10::DeviceType::CUDA, device.index()));
  for (const Devices::OutOfMemoryObserver& observer : Devices::Get().observers()) {
    observer(device.index(), size, f.allowed.value_or(memory.total).count(), f.free);
  }
  if (call.thrown() != nullptr) std::rethrow_exception(call.thrown());
  TORCH_CHECK_WITH(OutOfMemoryError, false, Message(device, f, report));
  C10_THROW_ERROR(OutOfMemoryError, report);  // not reached: tells the compiler that nothing returns
}

}  // namespace gpuledger::pytorch
