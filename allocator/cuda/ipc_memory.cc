// Device memory given to another process, and taken from one.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "cuda_upstream_state.h"
#include "gpuledger/cuda_ipc.h"
#include "ipc_handles.h"
#include "peer_access.h"

namespace gpuledger {

// ---- export ------------------------------------------------------------------------------------------------------------

absl::StatusOr<cuda::SharedHandle> CudaUpstream::State::ExportHandle(HandleId handle) {
  static std::atomic<uint64_t> exports{0};
  const Bytes size = books.handle(handle).size;
  if (const auto found = exported.find(handle); found != exported.end()) {
    return cuda::SharedHandle{found->second.descriptor.get(), found->second.number, size};
  }
  int fd = -1;
  const cuda::Result result = driver().cuMemExportToShareableHandle(&fd, books.handle(handle).place,
                                                                    cuda::kHandleTypePosixFileDescriptor, 0);
  if (result != cuda::kSuccess) return Said(result, "cuMemExportToShareableHandle", "CudaUpstream::Export");
  fcntl(fd, F_SETFD, FD_CLOEXEC);  // a program that is started does not keep the memory
  const uint64_t number = exports.fetch_add(1, std::memory_order_relaxed) + 1;
  exported.emplace(handle, Exported{cuda::Descriptor(fd), number});
  return cuda::SharedHandle{fd, number, size};
}

absl::StatusOr<ExportedMemory> CudaUpstream::Export(DevicePtr address, Bytes size) {
  constexpr std::string_view kCall = "CudaUpstream::Export";
  State& s = *state_;
  const cuda::Inside inside(*s.context);
  if (!inside.ok()) return inside.status(kCall);
  if (!s.options.exportable) {
    return absl::FailedPreconditionError(fmt::format(
        "{}: the upstream was opened without CudaOptions::exportable; memory that is to be shared is bought that way", kCall));
  }
  MutexLock lock(s.mutex);
  cuda::SharedHandles shared;
  shared.process = getpid();
  shared.started = cuda::StartOf(shared.process);
  const auto& mappings = s.books.mappings();
  auto at = mappings.upper_bound(address.address());
  const uint64_t first = at == mappings.begin() ? 0 : std::prev(at)->first;
  uint64_t end = first;
  const bool ours = address.device() == s.books.device() && !size.is_zero() && at != mappings.begin() &&
                    size < Bytes::Max() - Bytes(address.address());
  const uint64_t wanted = ours ? (Bytes(address.address()) + size).count() : 0;
  for (at = ours ? std::prev(at) : mappings.end(); end < wanted && at != mappings.end() && at->first == end; ++at) {
    const absl::StatusOr<cuda::SharedHandle> handle = s.ExportHandle(at->second.handle);
    if (!handle.ok()) return handle.status();
    shared.handles.push_back(*handle);
    end += handle->size.count();
  }
  if (!ours || end < wanted) {
    return absl::NotFoundError(fmt::format("{}: not all of the {} at {:#x} is memory of this upstream (device {})", kCall,
                                           ToString(size), address.address(), s.books.device().value()));
  }
  return ExportedMemory{cuda::Encode(shared), Bytes(address.address() - first)};
}

// ---- import ------------------------------------------------------------------------------------------------------------

namespace {
constexpr std::string_view kImport = "ImportedMemory::Import";
}  // namespace

struct ImportedMemory::State {
  State(std::unique_ptr<cuda::PrimaryContext> its_context, DeviceId its_device)
      : context(std::move(its_context)), device(its_device) {}
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  [[nodiscard]] const cuda::Driver& driver() const { return context->driver(); }
  absl::Status Said(cuda::Result result, std::string_view call) const {
    return cuda::CudaStatus(driver(), result, call, fmt::format("{} of {} for device {}", kImport, ToString(size), device.value()));
  }
  // Behind what is mapped already.
  absl::Status Map(const cuda::Descriptor& descriptor, Bytes piece);
  absl::Status SetAccess(cuda::Device to) const;

  const std::unique_ptr<cuda::PrimaryContext> context;
  const DeviceId device;
  cuda::Address base = 0;  // reserved if not 0
  Bytes size;
  Bytes mapped;  // from the base on
};

ImportedMemory::State::~State() {
  if (base == 0) return;
  const cuda::Inside inside(*context);
  if (!inside.ok()) return;
  if (!mapped.is_zero()) {
    // What may still be used is not taken away: a capture that is going on, for one, forbids to wait for the device.
    if (driver().cuCtxSynchronize() == cuda::kStreamCaptureUnsupported) return;
    if (driver().cuMemUnmap(base, mapped.count()) != cuda::kSuccess) return;
  }
  driver().cuMemAddressFree(base, size.count());
}

absl::Status ImportedMemory::State::Map(const cuda::Descriptor& descriptor, Bytes piece) {
  cuda::Memory memory = 0;
  void* const shareable = reinterpret_cast<void*>(static_cast<intptr_t>(descriptor.get()));
  cuda::Result result = driver().cuMemImportFromShareableHandle(&memory, shareable, cuda::kHandleTypePosixFileDescriptor);
  if (result != cuda::kSuccess) return Said(result, "cuMemImportFromShareableHandle");
  result = driver().cuMemMap(base + mapped.count(), piece.count(), 0, memory, 0);
  if (result == cuda::kSuccess) mapped += piece;
  // Mapped, it needs the handle no more.
  const cuda::Result released = driver().cuMemRelease(memory);
  if (result != cuda::kSuccess) return Said(result, "cuMemMap");
  return Said(released, "cuMemRelease");
}

absl::Status ImportedMemory::State::SetAccess(cuda::Device to) const {
  const cuda::AccessDescription access = {{cuda::kLocationTypeDevice, to}, cuda::kAccessReadWrite};
  return Said(driver().cuMemSetAccess(base, size.count(), &access, 1), "cuMemSetAccess");
}

absl::StatusOr<ImportedMemory> ImportedMemory::Import(DeviceId device, std::string_view handles) {
  const absl::StatusOr<cuda::SharedHandles> shared = cuda::Decode(handles);
  if (!shared.ok()) return shared.status();
  const absl::StatusOr<const cuda::Driver*> driver = cuda::LoadDriver();
  if (!driver.ok()) return driver.status();
  absl::StatusOr<std::unique_ptr<cuda::PrimaryContext>> context =
      cuda::PrimaryContext::Retain(**driver, device.value(), kImport);
  if (!context.ok()) return context.status();
  const absl::StatusOr<std::vector<cuda::Descriptor>> descriptors = cuda::TakeDescriptors(*shared);
  if (!descriptors.ok()) return descriptors.status();

  auto state = std::make_unique<State>(*std::move(context), device);
  const cuda::Inside inside(*state->context);
  if (!inside.ok()) return inside.status(kImport);
  state->size = shared->size();
  const cuda::Result result = state->driver().cuMemAddressReserve(&state->base, state->size.count(), 0, 0, 0);
  if (result != cuda::kSuccess) {
    state->base = 0;
    return state->Said(result, "cuMemAddressReserve");
  }
  for (size_t i = 0; i < descriptors->size(); ++i) {
    if (absl::Status status = state->Map((*descriptors)[i], shared->handles[i].size); !status.ok()) return status;
  }
  if (absl::Status status = state->SetAccess(state->context->device()); !status.ok()) return status;
  return ImportedMemory(std::move(state));
}

ImportedMemory::ImportedMemory(std::unique_ptr<State> state) : state_(std::move(state)) {}
ImportedMemory::~ImportedMemory() = default;
ImportedMemory::ImportedMemory(ImportedMemory&& other) noexcept = default;
ImportedMemory& ImportedMemory::operator=(ImportedMemory&& other) noexcept = default;

DevicePtr ImportedMemory::base() const { return DevicePtr(state_->device, state_->base); }
Bytes ImportedMemory::size() const { return state_->size; }

absl::Status ImportedMemory::AllowPeer(DeviceId peer) {
  constexpr std::string_view kCall = "ImportedMemory::AllowPeer";
  const cuda::Inside inside(*state_->context);
  if (!inside.ok()) return inside.status(kCall);
  const absl::StatusOr<cuda::Device> device = cuda::FindPeer(*state_->context, peer, kCall);
  return device.ok() ? state_->SetAccess(*device) : device.status();
}

}  // namespace gpuledger
