// allocator/c_api_arguments.h - arguments of the C functions, checked, and figures on their way out.
#pragma once

#include <fmt/format.h>

#include "gpuledger/c_status.h"
#include "gpuledger/ledger.h"

namespace gpuledger {

inline absl::Status Missing(std::string_view what) { return absl::InvalidArgumentError(fmt::format("{} is NULL", what)); }

inline absl::StatusOr<Role> RoleOf(gpuledger_role role) {
  if (role >= 0 && role < kRoleCount) return static_cast<Role>(role);
  return absl::InvalidArgumentError(fmt::format("{} is no role; roles are 0 to {} (gpuledger_role_name)", role, kRoleCount - 1));
}

inline gpuledger_usage ToC(const Usage& u) {
  return {u.in_use.count(), u.requested.count(), u.pending.count(), u.peak.count(), u.at_device_peak.count(), u.charged_ever.count(), u.count, u.pending_count};
}

}  // namespace gpuledger
