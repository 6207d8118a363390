// Owners for C: payers on PyTorch's threads, modules, names for what is there.
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include "carried_payer.h"
#include "gpuledger/process.h"
#include "module_scopes.h"
#include "torch_guard.h"
#include "workspaces.h"

namespace gpuledger::pytorch {
namespace {

uint64_t AddressOf(const c10::TensorImpl& impl) {
  if (!impl.has_storage()) return 0;
  const c10::StorageImpl* const storage = impl.unsafe_storage().unsafeGetStorageImpl();
  if (storage == nullptr) return 0;
  // No checks: they raise for a consumed storage, and copy a copy-on-write one.
  return reinterpret_cast<uint64_t>(const_cast<c10::StorageImpl*>(storage)->_mutable_data_ptr_no_checks().get());
}

}  // namespace
}  // namespace gpuledger::pytorch

using namespace gpuledger;           // NOLINT(google-build-using-namespace): the C boundary of this very library
using namespace gpuledger::pytorch;  // NOLINT(google-build-using-namespace)

int gpuledger_torch_carry_payers(void) noexcept {
  return TorchGuard([] {
    CarryPayers();
    return absl::OkStatus();
  });
}

int gpuledger_torch_adopt(void* tensor_impl, const char* owner, int role, uint64_t* address) noexcept {
  return TorchGuard([&]() -> absl::Status {
    uint64_t unused;
    if (address == nullptr) address = &unused;
    *address = 0;
    if (role < 0 || role >= kRoleCount) return absl::InvalidArgumentError(fmt::format("{} is not a role", role));
    const Payer to{InternOwner(owner), static_cast<Role>(role)};
    const uint64_t place = AddressOf(*static_cast<const c10::TensorImpl*>(tensor_impl));
    if (place == 0) return absl::OkStatus();
    const absl::StatusOr<LiveAllocation> charge = FindInProcess(place);
    if (!charge.ok() || charge->pending || charge->address.address() != place) return absl::OkStatus();
    const Payer& now = charge->payer;
    // Each transfer is a record: what has the name already gets it no second time.
    if (now.owner == to.owner && now.role == to.role && now.scope == to.scope) {
      *address = place;
    } else if (TransferInProcess(place, to).ok()) {
      *address = place;
    }
    return absl::OkStatus();
  });
}

int gpuledger_torch_name_workspaces(void) noexcept {
  return TorchGuard([] {
    NameWorkspaces();
    return absl::OkStatus();
  });
}

uint32_t gpuledger_torch_module(const char* path) noexcept { return InternOwner(path).value(); }

int gpuledger_torch_enter_module(uint32_t module) noexcept {
  return TorchGuard([&] { return EnterModule(OwnerId(module)); });
}

int gpuledger_torch_leave_module(uint32_t module) noexcept {
  return TorchGuard([&] { return LeaveModule(OwnerId(module)); });
}
