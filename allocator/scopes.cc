// Scopes: who pays for what this thread allocates, and which transient scopes are open.
#include "scopes.h"

#include <functional>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include "gpuledger/record.h"
#include "sync.h"

namespace gpuledger {
namespace {

thread_local OwnerScope* innermost_scope = nullptr;

// Paths that this thread has joined, by a hash of both parts. A name never moves, so the path is compared where it stands in
// it. No constructor and no destructor: it serves to the thread's very end.
struct Joined {
  uint32_t outer, owner;
  const char* path;  // null: none yet
  size_t length;
};
constexpr size_t kJoined = 64;
thread_local Joined joined_paths[kJoined];

OwnerId Join(OwnerId outer, std::string_view path) {
  if (path.empty()) return outer;
  Joined& joined = joined_paths[(std::hash<std::string_view>()(path) ^ outer.value()) % kJoined];
  if (joined.path != nullptr && joined.outer == outer.value() && std::string_view(joined.path, joined.length) == path) {
    return OwnerId(joined.owner);
  }
  const OwnerId owner = InternOwner(outer == kUnattributed ? std::string(path) : fmt::format("{}/{}", OwnerName(outer), path));
  const std::string_view name = OwnerName(owner);
  joined = {outer.value(), owner.value(), name.data() + (name.size() - path.size()), path.size()};
  return owner;
}

// Transient scopes that have not ended. An id that was given out and is not here is over, so nothing grows with time.
class OpenScopes {
 public:
  ScopeId Open() {
    MutexLock lock(mutex_);
    do {
      ++last_;
    } while (last_ == 0 || open_.contains(last_));  // after 2^32 they come again
    open_.insert(last_);
    return ScopeId(last_);
  }
  void End(ScopeId scope) {
    MutexLock lock(mutex_);
    open_.erase(scope.value());
  }
  bool IsOpen(ScopeId scope) {
    MutexLock lock(mutex_);
    return open_.contains(scope.value());
  }
  void LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { mutex_.Lock(); }
  void UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { mutex_.Unlock(); }

 private:
  Mutex mutex_;
  uint32_t last_ GPULEDGER_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_set<uint32_t> open_ GPULEDGER_GUARDED_BY(mutex_);
};

OpenScopes& Open() {
  static OpenScopes& open = *new OpenScopes;  // never destroyed: scopes may end after main()
  return open;
}

}  // namespace

void LockScopesForFork() { Open().LockForFork(); }
void UnlockScopesAfterFork() { Open().UnlockAfterFork(); }

Payer CurrentPayer() noexcept { return innermost_scope == nullptr ? Payer{} : innermost_scope->payer_; }

bool ScopeEnded(ScopeId scope) noexcept { return scope != ScopeId(0) && !Open().IsOpen(scope); }

OwnerScope::OwnerScope(std::string_view path, Role role, Lifetime lifetime) : payer_(CurrentPayer()), outer_(innermost_scope) {
  payer_.owner = Join(payer_.owner, path);
  payer_.role = role;
  if (lifetime == Lifetime::kTransient) payer_.scope = ends_ = Open().Open();
  innermost_scope = this;
}

OwnerScope::OwnerScope(Payer payer) : payer_(payer), outer_(innermost_scope) { innermost_scope = this; }

OwnerScope::~OwnerScope() {
  if (innermost_scope != this) Die("OwnerScope: scopes of a thread end in the reverse order of their beginning");
  innermost_scope = outer_;
  if (ends_ != ScopeId(0)) [[unlikely]] Open().End(ends_);
}

}  // namespace gpuledger
