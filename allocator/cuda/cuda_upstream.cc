#include "gpuledger/cuda_upstream.h"

#include <chrono>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "cuda_upstream_state.h"

namespace gpuledger {

namespace {

constexpr Bytes kUnit = Bytes(uint64_t{2} << 20);
// More than any device addresses: the driver answers such sizes with one error or another.
constexpr Bytes kAllAddresses = Bytes(uint64_t{1} << 57);

// What every handle of a device is asked for with.
cuda::AllocationProperties Properties(int device, const CudaOptions& options) {
  cuda::AllocationProperties properties = {};
  properties.type = cuda::kAllocationTypePinned;
  properties.handle_types = options.exportable ? cuda::kHandleTypePosixFileDescriptor : cuda::kHandleTypeNone;
  properties.location = {cuda::kLocationTypeDevice, device};
  properties.flags.gpu_direct_rdma_capable = options.gpu_direct_rdma ? 1 : 0;
  return properties;
}

absl::Status CheckOptions(const cuda::PrimaryContext& context, const CudaOptions& options, bool mapping) {
  const auto lacks = [&](bool wanted, cuda::Attribute attribute, std::string_view option) {
    return wanted && (!mapping || context.attribute(attribute) == 0)
               ? absl::UnimplementedError(
                     fmt::format("CudaUpstream::Open: CudaOptions::{} is not possible on device {}: leave "
                                 "it out",
                                 option, context.device()))
               : absl::OkStatus();
  };
  absl::Status status = lacks(options.exportable, cuda::kPosixFileDescriptorSupported, "exportable");
  status.Update(lacks(options.gpu_direct_rdma, cuda::kGpuDirectRdmaWithVmmSupported, "gpu_direct_rdma"));
  return status;
}

bool CanMap(const cuda::PrimaryContext& context) { return context.attribute(cuda::kVirtualMemoryManagementSupported) != 0; }

}  // namespace

absl::StatusOr<CudaOptions> CudaUpstream::Possible(DeviceId device) {
  const absl::StatusOr<const cuda::Driver*> driver = cuda::LoadDriver();
  if (!driver.ok()) return driver.status();
  const absl::StatusOr<std::unique_ptr<cuda::PrimaryContext>> context =
      cuda::PrimaryContext::Retain(**driver, device.value(), "CudaUpstream::Possible");
  if (!context.ok()) return context.status();
  const bool mapping = CanMap(**context);
  return CudaOptions{.exportable = mapping && (*context)->attribute(cuda::kPosixFileDescriptorSupported) != 0,
                     .gpu_direct_rdma = mapping && (*context)->attribute(cuda::kGpuDirectRdmaWithVmmSupported) != 0,
                     .mapping = mapping};
}

absl::StatusOr<std::unique_ptr<CudaUpstream>> CudaUpstream::Open(DeviceId device, const CudaOptions& options) {
  const absl::StatusOr<const cuda::Driver*> driver = cuda::LoadDriver();
  if (!driver.ok()) return driver.status();
  absl::StatusOr<std::unique_ptr<cuda::PrimaryContext>> context =
      cuda::PrimaryContext::Retain(**driver, device.value());
  if (!context.ok()) return context.status();
  const bool mapping = options.mapping && CanMap(**context);
  if (absl::Status status = CheckOptions(**context, options, mapping); !status.ok()) return status;

  const std::string what = fmt::format("CudaUpstream::Open of device {}", device.value());
  size_t total = 0, granularity = kUnit.count();
  cuda::Result result = (*driver)->cuDeviceTotalMem(&total, (*context)->device());
  if (result != cuda::kSuccess) return cuda::CudaStatus(**driver, result, "cuDeviceTotalMem", what);
  if (mapping) {
    const cuda::AllocationProperties properties = Properties((*context)->device(), options);
    result = (*driver)->cuMemGetAllocationGranularity(&granularity, &properties, cuda::kGranularityMinimum);
    if (result != cuda::kSuccess) return cuda::CudaStatus(**driver, result, "cuMemGetAllocationGranularity", what);
  }
  // A power of two, as the driver has it: the larger of two is a multiple of the smaller.
  const Bytes unit = std::max(Bytes(granularity), kUnit);
  return std::unique_ptr<CudaUpstream>(new CudaUpstream(
      std::make_unique<State>(*std::move(context), device, Bytes(total).RoundDownTo(unit), unit, mapping, options)));
}

CudaUpstream::CudaUpstream(std::unique_ptr<State> state) : state_(std::move(state)) {}

CudaUpstream::~CudaUpstream() {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return;
  MutexLock lock(s.mutex);
  // What may still be used is not given back: a capture that is going on, for one, forbids to wait for the device.
  const bool holds = !s.books.mappings().empty() || !s.bought.empty();
  if (holds && s.driver().cuCtxSynchronize() == cuda::kStreamCaptureUnsupported) return;
  for (const auto& [address, mapping] : std::map(s.books.mappings())) {
    const bool unmapped = s.driver().cuMemUnmap(address, mapping.size.count()) == cuda::kSuccess;
    if (unmapped) s.books.RemoveMapping(DevicePtr(s.books.device(), address), mapping.handle);
  }
  for (const auto& [id, handle] : s.books.handles()) s.driver().cuMemRelease(handle.place);
  for (const auto& [base, size] : s.books.ranges()) {
    // What could not be unmapped keeps its addresses.
    const bool empty = s.books.CheckUnreserve({DevicePtr(s.books.device(), base), size}).ok();
    if (s.capabilities.mapping && empty) s.driver().cuMemAddressFree(base, size.count());
  }
  for (const auto& [base, address] : s.bought) s.driver().cuMemFree(address);
}

TimePoint CudaUpstream::now() const {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return TimePoint(static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count()));
}

DeviceId CudaUpstream::device() const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { return state_->books.device(); }
Capabilities CudaUpstream::capabilities() const { return state_->capabilities; }
Bytes CudaUpstream::granularity() const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { return state_->books.granularity(); }

void CudaUpstream::VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const {
  if (state_->context->in_forked_child()) return;  // another thread may have held the mutex when the process forked
  MutexLock lock(state_->mutex);
  state_->books.VisitNotes(visit);
}

MemoryInfo CudaUpstream::memory_info() const {
  const cuda::Inside inside(*state_->context);
  size_t free = 0, total = 0;
  if (state_->context->in_forked_child()) return {};  // another thread may have held the mutex when the process forked
  if (inside.ok() && state_->driver().cuMemGetInfo(&free, &total) == cuda::kSuccess) return {Bytes(free), Bytes(total)};
  MutexLock lock(state_->mutex);
  return {Bytes(), state_->books.memory_info().total};
}

absl::StatusOr<uint64_t> CudaUpstream::State::BuyRange(Bytes size) {
  const std::string what = fmt::format("Reserve of {}", ToString(size));
  const Bytes unit = books.granularity();
  cuda::Address address = 0;
  if (const cuda::Result result = driver().cuMemAlloc(&address, size.count()); result != cuda::kSuccess) {
    return Said(result, "cuMemAlloc", what);
  }
  if (!(Bytes(uint64_t{address}) % unit)
           .is_zero()) {  // large pieces mostly are aligned; if not, one with room to align in
    driver().cuMemFree(address);
    const cuda::Result result = driver().cuMemAlloc(&address, (size + unit).count());
    if (result != cuda::kSuccess) return Said(result, "cuMemAlloc", what);
  }
  const uint64_t base = Bytes(uint64_t{address}).RoundUpTo(unit).count();
  bought.emplace(base, address);
  return base;
}

absl::StatusOr<Range> CudaUpstream::Reserve(Bytes size) {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status("Reserve");
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckReserve(size); !status.ok()) return status;
  if (size > kAllAddresses)
    return absl::ResourceExhaustedError(fmt::format("Reserve: no addresses for {}", ToString(size)));
  absl::StatusOr<uint64_t> base = uint64_t{0};
  if (s.capabilities.mapping) {
    cuda::Address address = 0;
    const cuda::Result result =
        s.driver().cuMemAddressReserve(&address, size.count(), s.books.granularity().count(), 0, 0);
    base = result == cuda::kSuccess
               ? absl::StatusOr<uint64_t>(address)
               : s.Said(result, "cuMemAddressReserve", fmt::format("Reserve of {}", ToString(size)));
  } else {
    base = s.BuyRange(size);
  }
  if (!base.ok()) return base.status();
  const Range range{DevicePtr(s.books.device(), *base), size};
  s.books.AddRange(range);
  return range;
}

absl::Status CudaUpstream::Unreserve(Range range) {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status("Unreserve");
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckUnreserve(range); !status.ok()) return status;
  const uint64_t base = range.base.address();
  absl::Status status;
  if (s.capabilities.mapping) {
    status = s.Said(s.driver().cuMemAddressFree(base, range.size.count()), "cuMemAddressFree", "Unreserve");
  } else {
    status = s.Said(s.driver().cuMemFree(s.bought.find(base)->second), "cuMemFree", "Unreserve");
    if (status.ok()) s.bought.erase(base);
  }
  if (status.ok()) s.books.RemoveRange(range);
  return status;
}

absl::StatusOr<HandleId> CudaUpstream::CreateHandle(Bytes size) {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status("CreateHandle");
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckCreate(size); !status.ok()) return status;
  const cuda::AllocationProperties properties = Properties(s.context->device(), s.options);
  cuda::Memory memory = 0;
  const cuda::Result result = s.driver().cuMemCreate(&memory, size.count(), &properties, 0);
  if (result != cuda::kSuccess) {
    return s.Said(result, "cuMemCreate",
                  fmt::format("CreateHandle of {} on device {}", ToString(size), s.books.device().value()));
  }
  return s.books.AddHandle(size, memory);
}

absl::Status CudaUpstream::ReleaseHandle(HandleId handle) {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status("ReleaseHandle");
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckRelease(handle); !status.ok()) return status;
  absl::Status status = s.Said(s.driver().cuMemRelease(s.books.handle(handle).place), "cuMemRelease", "ReleaseHandle");
  if (!status.ok()) return status;
  s.exported.erase(handle);  // a descriptor would keep the memory
  s.books.RemoveHandle(handle);
  return status;
}

absl::Status CudaUpstream::Map(DevicePtr address, HandleId handle) {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status("Map");
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckMap(address, handle); !status.ok()) return status;
  const UpstreamBooks::Handle& mapped = s.books.handle(handle);
  const size_t size = mapped.size.count();
  const auto what = [&] { return fmt::format("Map of {} at {:#x}", ToString(mapped.size), address.address()); };
  cuda::Result result = s.driver().cuMemMap(address.address(), size, 0, mapped.place, 0);
  if (result != cuda::kSuccess) return s.Said(result, "cuMemMap", what());
  result = s.driver().cuMemSetAccess(address.address(), size, s.access.data(), s.access.size());
  if (result != cuda::kSuccess) {
    s.driver().cuMemUnmap(address.address(), size);
    return s.Said(result, "cuMemSetAccess", what());
  }
  s.books.AddMapping(address, handle);
  return absl::OkStatus();
}

absl::Status CudaUpstream::Unmap(DevicePtr address, HandleId handle) {
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status("Unmap");
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckUnmap(address, handle); !status.ok()) return status;
  const size_t size = s.books.handle(handle).size.count();
  absl::Status status = s.Said(s.driver().cuMemUnmap(address.address(), size), "cuMemUnmap",
                               fmt::format("Unmap of {} at {:#x}", ToString(Bytes(size)), address.address()));
  if (status.ok()) s.books.RemoveMapping(address, handle);
  return status;
}

absl::StatusOr<FenceId> CudaUpstream::RecordFence(Stream stream) { return state_->fences.Record(stream); }
absl::StatusOr<bool> CudaUpstream::PollFence(FenceId fence) { return state_->fences.Poll(fence); }
absl::Status CudaUpstream::WaitFence(FenceId fence) { return state_->fences.Wait(fence); }
absl::Status CudaUpstream::MakeStreamWait(Stream stream, FenceId fence) {
  return state_->fences.MakeStreamWait(stream, fence);
}
absl::Status CudaUpstream::Synchronize() {
  const cuda::Inside inside(*state_->context);
  if (!inside.ok()) return inside.status("Synchronize");
  const cuda::Result result = state_->driver().cuCtxSynchronize();
  absl::Status status = state_->Said(result, "cuCtxSynchronize", "Synchronize");
  return result == cuda::kStreamCaptureUnsupported ? absl::FailedPreconditionError(status.message()) : status;
}
bool CudaUpstream::Capturing(Stream stream) const {
  const cuda::Inside inside(*state_->context);
  cuda::CaptureStatus status = cuda::kCaptureNone;
  const cuda::Result result = inside.ok() ? state_->driver().cuStreamIsCapturing(stream.raw(), &status) : cuda::kSuccess;
  return result == cuda::kStreamCaptureImplicit || (result == cuda::kSuccess && status != cuda::kCaptureNone);
}
void CudaUpstream::DropFence(FenceId fence) { state_->fences.Drop(fence); }
std::vector<FenceId> CudaUpstream::PassedFences(std::span<const FenceId> fences) {
  return state_->fences.Passed(fences);
}

}  // namespace gpuledger
