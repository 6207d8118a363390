// The process as a whole, for C.
#include "c_api_arguments.h"
#include "gpuledger/process.h"

using namespace gpuledger;  // the functions below are C

gpuledger_status gpuledger_process_usage(const char* owner, gpuledger_role role, gpuledger_usage* usage) noexcept {
  return Guard([&]() -> absl::Status {
    if (usage == nullptr) return Missing("usage");
    std::optional<Role> its_role;
    if (role != -1) {
      const absl::StatusOr<Role> named = RoleOf(role);
      if (!named.ok()) return named.status();
      its_role = *named;
    }
    *usage = ToC(ProcessUsage(owner == nullptr ? std::nullopt : std::optional(InternOwner(owner)), its_role));
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_process_reset_peak(void) noexcept {
  return Guard([] {
    ResetProcessPeak();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_process_transfer(uint64_t address, const char* owner, gpuledger_role role) noexcept {
  return Guard([&]() -> absl::Status {
    if (owner == nullptr) return Missing("owner");
    const absl::StatusOr<Role> to = RoleOf(role);
    return to.ok() ? TransferInProcess(address, {InternOwner(owner), *to}) : to.status();
  });
}

gpuledger_status gpuledger_process_blocks(const char* owner, gpuledger_role role, uint64_t* addresses, uint64_t* sizes, uint64_t room,
                                          uint64_t* count) noexcept {
  return Guard([&]() -> absl::Status {
    if (owner == nullptr || count == nullptr || (room != 0 && (addresses == nullptr || sizes == nullptr))) {
      return Missing("owner, addresses, sizes or count");
    }
    std::optional<Role> its_role;
    if (role != -1) {
      const absl::StatusOr<Role> named = RoleOf(role);
      if (!named.ok()) return named.status();
      its_role = *named;
    }
    *count = 0;
    ForEachKeeper([&](LedgerKeeper& keeper) {
      for (const LiveAllocation& a : keeper.ledger().live(InternOwner(owner))) {
        if (a.pending || (its_role.has_value() && a.payer.role != *its_role)) continue;
        if (*count < room) addresses[*count] = a.address.address(), sizes[*count] = a.requested.count();
        ++*count;
      }
    });
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_process_lineage(const char* weight, gpuledger_lineage* lineage) noexcept {
  return Guard([&]() -> absl::Status {
    if (weight == nullptr || lineage == nullptr) return Missing("weight or lineage");
    const Lineage l = ProcessLineage(InternOwner(weight));
    static_assert(static_cast<int>(LineageState::kClosed) == GPULEDGER_LINEAGE_CLOSED && static_cast<int>(LineageState::kOpen) == GPULEDGER_LINEAGE_OPEN);
    *lineage = {static_cast<gpuledger_lineage_state>(l.state), ToC(l.source), ToC(l.staging), ToC(l.quantized)};
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_process_open_lineage(const char* weight) noexcept {
  return Guard([&]() -> absl::Status { return weight == nullptr ? Missing("weight") : OpenProcessLineage(InternOwner(weight)); });
}

gpuledger_status gpuledger_process_close_lineage(const char* weight) noexcept {
  return Guard([&]() -> absl::Status { return weight == nullptr ? Missing("weight") : CloseProcessLineage(InternOwner(weight)); });
}

gpuledger_status gpuledger_process_residual(const char* glob, uint64_t* bytes, uint64_t* allocations) noexcept {
  return Guard([&]() -> absl::Status {
    if (glob == nullptr || bytes == nullptr) return Missing("glob or bytes");
    const absl::StatusOr<ResidualOfGlob> residual = ProcessResidual(glob);
    if (!residual.ok()) return residual.status();
    *bytes = residual->bytes.count();
    if (allocations != nullptr) *allocations = residual->allocations.size();
    return absl::OkStatus();
  });
}
