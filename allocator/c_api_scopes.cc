// Owner scopes for C: by token, so that whoever ends one too early (a generator, a coroutine) harms nobody else's.
#include <algorithm>
#include <atomic>
#include <deque>

#include "c_api_arguments.h"
#include "scopes.h"
#include "this_thread.h"

namespace gpuledger {
namespace {

struct Scope {
  template <class... What>
  explicit Scope(uint64_t its_token, const char* its_path, What... what) : scope(what...), token(its_token), path(its_path) {}
  OwnerScope scope;  // stays where it was made
  const uint64_t token;
  const char* const path;  // whoever entered it by its path; not read
  bool ended = false;
};

// The scopes of a thread that C opened. Those that are left when it ends are ended in order.
class ScopeStack {
 public:
  ~ScopeStack() {
    while (!scopes_.empty()) scopes_.pop_back();
  }
  // Returns the token: never 0, and of this thread alone.
  template <class... What>
  uint64_t Open(What... what) {
    scopes_.emplace_back(++last_token_, nullptr, what...);
    return last_token_;
  }
  void Enter(const char* path, Role role, OwnerScope::Lifetime lifetime) { scopes_.emplace_back(++last_token_, path, path, role, lifetime); }
  absl::Status Close(uint64_t token) {
    return CloseFirst([token](const Scope& s) { return s.token == token; });
  }
  absl::Status Leave(const char* path) {
    return CloseFirst([path](const Scope& s) { return s.path == path; });
  }

 private:
  template <class Is>
  absl::Status CloseFirst(Is is) {
    const auto scope = std::find_if(scopes_.rbegin(), scopes_.rend(), [is](const Scope& s) { return !s.ended && is(s); });
    if (scope == scopes_.rend()) {
      return absl::InvalidArgumentError("an owner scope ends on a thread where it did not begin, or once too often");
    }
    scope->ended = true;
    const bool innermost = scope == scopes_.rbegin();
    while (!scopes_.empty() && scopes_.back().ended) scopes_.pop_back();
    if (innermost) return absl::OkStatus();
    return absl::InvalidArgumentError("an owner scope ends before one that began later; it pays until that one ends");
  }

  static uint64_t TokensOfAThread() {
    static std::atomic<uint64_t> threads = 0;
    return threads.fetch_add(1, std::memory_order_relaxed) << 40;
  }
  std::deque<Scope> scopes_;
  uint64_t last_token_ = TokensOfAThread();
};

absl::StatusOr<ScopeStack*> Scopes() {
  if (ScopeStack* scopes = OfThisThread<ScopeStack>()) return scopes;
  return absl::FailedPreconditionError("owner scopes: this thread has ended");
}

}  // namespace
}  // namespace gpuledger

using namespace gpuledger;  // the functions below are C

gpuledger_status gpuledger_open_scope(const char* path, gpuledger_role role, int transient, uint64_t* token) noexcept {
  return Guard([&]() -> absl::Status {
    if (path == nullptr || token == nullptr) return Missing("path or token");
    const absl::StatusOr<Role> its_role = RoleOf(role);
    if (!its_role.ok()) return its_role.status();
    const absl::StatusOr<ScopeStack*> scopes = Scopes();
    if (!scopes.ok()) return scopes.status();
    *token = (*scopes)->Open(path, *its_role, transient != 0 ? OwnerScope::Lifetime::kTransient : OwnerScope::Lifetime::kOwners);
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_close_scope(uint64_t token) noexcept {
  return Guard([&]() -> absl::Status {
    const absl::StatusOr<ScopeStack*> scopes = Scopes();
    return scopes.ok() ? (*scopes)->Close(token) : scopes.status();
  });
}

gpuledger_status gpuledger_enter_scope(const char* path, gpuledger_role role, int transient) noexcept {
  return Guard([&]() -> absl::Status {
    if (path == nullptr) return Missing("path");
    const absl::StatusOr<Role> its_role = RoleOf(role);
    if (!its_role.ok()) return its_role.status();
    const absl::StatusOr<ScopeStack*> scopes = Scopes();
    if (!scopes.ok()) return scopes.status();
    (*scopes)->Enter(path, *its_role, transient != 0 ? OwnerScope::Lifetime::kTransient : OwnerScope::Lifetime::kOwners);
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_leave_scope(const char* path) noexcept {
  return Guard([&]() -> absl::Status {
    if (path == nullptr) return Missing("path");
    const absl::StatusOr<ScopeStack*> scopes = Scopes();
    return scopes.ok() ? (*scopes)->Leave(path) : scopes.status();
  });
}

gpuledger_status gpuledger_current_payer(gpuledger_payer* payer) noexcept {
  return Guard([&]() -> absl::Status {
    if (payer == nullptr) return Missing("payer");
    const Payer now = CurrentPayer();
    *payer = {now.owner.value(), now.scope.value(), static_cast<gpuledger_role>(now.role)};
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_adopt_payer(const gpuledger_payer* payer, uint64_t* token) noexcept {
  return Guard([&]() -> absl::Status {
    if (payer == nullptr || token == nullptr) return Missing("payer or token");
    const absl::StatusOr<Role> role = RoleOf(payer->role);
    if (!role.ok()) return role.status();
    if (!IsOwner(OwnerId(payer->owner))) {
      return absl::InvalidArgumentError(fmt::format("{} is no owner; payers come from gpuledger_current_payer", payer->owner));
    }
    const absl::StatusOr<ScopeStack*> scopes = Scopes();
    if (!scopes.ok()) return scopes.status();
    *token = (*scopes)->Open(Payer{OwnerId(payer->owner), *role, ScopeId(payer->scope)});
    return absl::OkStatus();
  });
}
