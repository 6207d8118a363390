// The C boundary of the LibTorch part: one Guard turns statuses and exceptions into codes and a sentence.
#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <string>
#include <string_view>
#include <utility>

#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include "gpuledger/gpuledger_torch.h"
#include "holders.h"

namespace gpuledger::pytorch {
namespace {

// Null once the objects of this thread are gone.
std::string* LastError() {
  static thread_local std::string* message = nullptr;
  static thread_local bool ended = false;
  struct Guard {
    ~Guard() {
      ended = true;
      delete std::exchange(message, nullptr);
    }
  };
  if (message == nullptr && !ended) {
    static thread_local Guard guard;
    (void)&guard;
    message = new std::string;
  }
  return message;
}
void SetLastError(std::string_view text) {
  if (std::string* const message = LastError()) *message = text;
}

int CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk: return GPULEDGER_TORCH_OK;
    case absl::StatusCode::kInvalidArgument: return GPULEDGER_TORCH_INVALID_ARGUMENT;
    case absl::StatusCode::kFailedPrecondition: return GPULEDGER_TORCH_SHARED;
    case absl::StatusCode::kPermissionDenied: return GPULEDGER_TORCH_NOT_OURS;
    case absl::StatusCode::kResourceExhausted: return GPULEDGER_TORCH_OUT_OF_MEMORY;
    default: return GPULEDGER_TORCH_INTERNAL;
  }
}

template <class Body>
int Guard(Body&& body) noexcept {
  try {
    SetLastError("");
    const absl::Status status = body();
    if (!status.ok()) SetLastError(std::string_view(status.message().data(), status.message().size()));
    return CodeOf(status);
  } catch (const std::bad_alloc&) {
    return GPULEDGER_TORCH_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    SetLastError(error.what());
  } catch (...) {
    SetLastError("an unknown exception");
  }
  return GPULEDGER_TORCH_INTERNAL;
}

// Scopes end in the reverse order of their beginning. One that is told to end too early does so with the one above it.
struct Scope {
  Scope(const char* path, Role role, uint64_t its_token) : scope(path, role), token(its_token) {}
  OwnerScope scope;
  uint64_t token;
  bool ended = false;
};
struct Scopes {
  ~Scopes() {
    while (!stack.empty()) stack.pop_back();
  }
  std::deque<Scope> stack;
};
std::deque<Scope>& ThreadScopes() {
  thread_local Scopes scopes;
  return scopes.stack;
}
std::atomic<uint64_t> next_token{1};

absl::Status RoleOf(const char* name, Role* role) {
  if (ParseRole(name, role)) return absl::OkStatus();
  std::string known;
  for (int i = 0; i < kRoleCount; ++i) known += fmt::format("{}{}", i == 0 ? "" : ", ", RoleName(static_cast<Role>(i)));
  return absl::InvalidArgumentError(fmt::format("'{}' is not a role; roles are {}", name, known));
}

void Fill(const HolderCounts& holders, gpuledger_torch_report* out) {
  out->tensor_handles = holders.tensor_handles;
  out->aliases = holders.aliases;
  out->python_references = holders.python_references;
  out->python_storages = holders.python_storages;
}

}  // namespace
}  // namespace gpuledger::pytorch

using namespace gpuledger;           // NOLINT(google-build-using-namespace): the C boundary of this very library
using namespace gpuledger::pytorch;  // NOLINT(google-build-using-namespace)

const char* gpuledger_torch_last_error(void) noexcept { return LastError() == nullptr ? "" : LastError()->c_str(); }
const char* gpuledger_torch_built_for(void) noexcept { return GPULEDGER_BUILT_FOR_TORCH; }

int gpuledger_torch_install_cpu(void) noexcept {
  return Guard([] {
    const absl::Status status = InstallCpuAllocator();
    // A refusal to install is not a shared storage.
    return status.code() == absl::StatusCode::kFailedPrecondition ? absl::InternalError(status.message()) : status;
  });
}

int gpuledger_torch_uninstall_cpu(void) noexcept {
  return Guard([] {
    UninstallCpuAllocator();
    return absl::OkStatus();
  });
}

int gpuledger_torch_cpu_installed(void) noexcept { return CpuAllocatorInstalled() ? 1 : 0; }

int gpuledger_torch_push_owner(const char* path, const char* role, uint64_t* token) noexcept {
  return Guard([&]() -> absl::Status {
    Role parsed = Role::kOther;
    if (absl::Status status = RoleOf(role, &parsed); !status.ok()) return status;
    *token = next_token.fetch_add(1, std::memory_order_relaxed);
    ThreadScopes().emplace_back(path, parsed, *token);
    return absl::OkStatus();
  });
}

int gpuledger_torch_pop_owner(uint64_t token) noexcept {
  return Guard([&]() -> absl::Status {
    std::deque<Scope>& stack = ThreadScopes();
    const auto scope =
        std::find_if(stack.begin(), stack.end(), [token](const Scope& s) { return s.token == token && !s.ended; });
    if (scope == stack.end()) {
      return absl::InvalidArgumentError("an owner scope ends on a thread where it did not begin");
    }
    scope->ended = true;
    const bool innermost = stack.back().ended;
    while (!stack.empty() && stack.back().ended) stack.pop_back();
    if (innermost) return absl::OkStatus();
    return absl::InvalidArgumentError("an owner scope ends before one that began later; it pays until that one ends");
  });
}

int gpuledger_torch_usage(const char* owner, const char* role, gpuledger_torch_usage_t* usage) noexcept {
  return Guard([&]() -> absl::Status {
    *usage = {};
    Role parsed = Role::kOther;
    if (role != nullptr) {
      if (absl::Status status = RoleOf(role, &parsed); !status.ok()) return status;
    }
    const CachingAllocator* const allocator = CpuAllocator();
    if (allocator == nullptr) return absl::OkStatus();
    const Ledger& ledger = allocator->ledger();
    Usage found;
    if (owner == nullptr) {
      found = role == nullptr ? ledger.usage() : ledger.usage(parsed);
    } else {
      const OwnerId id = InternOwner(owner);
      found = role == nullptr ? ledger.usage(id) : ledger.usage(id, parsed);
    }
    *usage = {found.in_use.count(), found.requested.count(), found.pending.count(), found.peak.count(), found.count};
    return absl::OkStatus();
  });
}

int gpuledger_torch_inspect(void* tensor_impl, uint64_t own_python_references,
                            gpuledger_torch_report* report) noexcept {
  return Guard([&]() -> absl::Status {
    *report = {};
    const auto& impl = *static_cast<const c10::TensorImpl*>(tensor_impl);
    if (!impl.has_storage()) return absl::InvalidArgumentError("the tensor has no storage");
    Fill(CountHolders(impl, {.python_references = own_python_references}), report);
    report->bytes = impl.storage().nbytes();
    report->freeable = Obstacle(*impl.storage().unsafeGetStorageImpl()).empty() ? 1 : 0;
    return absl::OkStatus();
  });
}

int gpuledger_torch_consume(void* tensor_impl, const char* weight, int policy, uint64_t own_python_references,
                            gpuledger_torch_report* report) noexcept {
  return Guard([&]() -> absl::Status {
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
