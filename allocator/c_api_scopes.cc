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
  explicit Scope(uint64_t its_token, What... what) : scope(what...), token(its_token) {}
  OwnerScope scope;  // stays where it was made
  const uint64_t token;
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
    scopes_.emplace_back(++last_token_, what...);
    return last_token_;
  }
  absl::Status Close(uint64_t token) {
    const auto scope = std::find_if(scopes_.rbegin(), scopes_.rend(), [token](const Scope& s) { return s.token == token && !s.ended; });
    if (scope == scopes_.rend()) {
      return absl::InvalidArgumentError("an owner scope ends on a thread where it did not begin, or for the second time");
    }
    scope->ended = true;
    const bool innermost = scope == scopes_.rbegin();
    while (!scopes_.empty() && scopes_.back().ended) scopes_.pop_back();
    if (innermost) return absl::OkStatus();
    return absl::InvalidArgumentError("an owner scope ends before one that began later; it pays until that one ends");
  }

 private:
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
