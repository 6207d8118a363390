// The LibTorch part for C: installing, holders, Consume.
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include "gpuledger/gpuledger_torch.h"
#include "holders.h"
#include "torch_guard.h"

namespace gpuledger::pytorch {
namespace {

void Fill(const HolderCounts& holders, gpuledger_torch_report* out) {
  out->tensor_handles = holders.tensor_handles;
  out->aliases = holders.aliases;
  out->python_references = holders.python_references;
  out->python_storages = holders.python_storages;
}

void Locate(const c10::StorageImpl& storage, gpuledger_torch_place* place) {
  // No checks: they raise for a consumed storage, and copy a copy-on-write one.
  place->address = reinterpret_cast<uint64_t>(const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get());
  place->bytes = storage.nbytes();
}

// Bytes of its storage that the tensor's elements are; what an expanded dimension repeats counts once.
uint64_t Covered(const c10::TensorImpl& impl) {
  uint64_t elements = 1;
  for (int64_t d = 0; d < impl.dim(); ++d) elements *= impl.stride(d) == 0 && impl.size(d) > 0 ? 1 : static_cast<uint64_t>(impl.size(d));
  return elements * impl.itemsize();
}

}  // namespace
}  // namespace gpuledger::pytorch

using namespace gpuledger;           // NOLINT(google-build-using-namespace): the C boundary of this very library
using namespace gpuledger::pytorch;  // NOLINT(google-build-using-namespace)

const char* gpuledger_torch_built_for(void) noexcept { return GPULEDGER_BUILT_FOR_TORCH; }

int gpuledger_torch_install_cpu(void) noexcept {
  return TorchGuard([] {
    const absl::Status status = InstallCpuAllocator();
    // A refusal to install is not a shared storage.
    return status.code() == absl::StatusCode::kFailedPrecondition ? absl::InternalError(status.message()) : status;
  });
}

int gpuledger_torch_uninstall_cpu(void) noexcept {
  return TorchGuard([] {
    UninstallCpuAllocator();
    return absl::OkStatus();
  });
}

int gpuledger_torch_cpu_installed(void) noexcept { return CpuAllocatorInstalled() ? 1 : 0; }

int gpuledger_torch_inspect(void* tensor_impl, uint64_t own_python_references,
                            gpuledger_torch_report* report) noexcept {
  return TorchGuard([&]() -> absl::Status {
    *report = {};
    const auto& impl = *static_cast<const c10::TensorImpl*>(tensor_impl);
    if (!impl.has_storage()) return absl::InvalidArgumentError("the tensor has no storage");
    Fill(CountHolders(impl, {.python_references = own_python_references}), report);
    report->bytes = impl.storage().nbytes();
    report->freeable = Obstacle(*impl.storage().unsafeGetStorageImpl()).empty() ? 1 : 0;
    return absl::OkStatus();
  });
}

int gpuledger_torch_locate(void* tensor_impl, gpuledger_torch_place* place) noexcept {
  return TorchGuard([&]() -> absl::Status {
    *place = {};
    const auto& impl = *static_cast<const c10::TensorImpl*>(tensor_impl);
    if (!impl.has_storage()) return absl::InvalidArgumentError("the tensor has no storage");
    Locate(*impl.unsafe_storage().unsafeGetStorageImpl(), place);
    place->covered = Covered(impl);
    return absl::OkStatus();
  });
}

int gpuledger_torch_locate_storage(void* storage_impl, gpuledger_torch_place* place) noexcept {
  return TorchGuard([&] {
    *place = {};
    Locate(*static_cast<const c10::StorageImpl*>(storage_impl), place);
    place->covered = place->bytes;
    return absl::OkStatus();
  });
}

int gpuledger_torch_consume(void* tensor_impl, const char* weight, int policy, uint64_t own_python_references,
                            gpuledger_torch_report* report) noexcept {
  return TorchGuard([&]() -> absl::Status {
    *report = {};
    if (policy < GPULEDGER_TORCH_REFUSE || policy > GPULEDGER_TORCH_REPORT) {
      return absl::InvalidArgumentError(fmt::format("{} is not a policy", policy));
    }
    auto& impl = *static_cast<c10::TensorImpl*>(tensor_impl);
    const OwnReferences own{.python_references = own_python_references};
    if (impl.has_storage()) Fill(CountHolders(impl, own), report);
    const absl::StatusOr<ConsumeReport> done =
        ConsumeStorage(impl, own, weight, static_cast<ConsumePolicy>(policy), [] { return absl::OkStatus(); });
    if (!done.ok()) return done.status();
    report->bytes = done->bytes.count();
    report->charged = done->charged.count();
    report->remaining = done->remaining.count();
    report->freed = done->freed ? 1 : 0;
    report->freeable = done->obstacle.empty() ? 1 : 0;
    return absl::OkStatus();
  });
}
