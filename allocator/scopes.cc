// Scopes: who pays for what this thread allocates, and which transient scopes are open.
#include "scopes.h"

#include <array>
#include <functional>
#include <string>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include "gpuledger/record.h"
#include "sync.h"
#include "this_thread.h"

namespace gpuledger {
namespace {

thread_local OwnerScope* innermost_scope = nullptr;

// Paths that a thread has joined, by a hash of both parts. Not a thread-local itself: the library's share of the static
// thread-local storage is small, and a program that opens it late has little left.
struct JoinedPaths {
  struct Joined {
    uint32_t outer = 0, owner = 0;
    std::string_view path;  // where it stands in the owner's name, which never moves; empty: none yet
  };
  std::array<Joined, 64> joined;
};

OwnerId InternJoined(OwnerId outer, std::string_view path) {
  return InternOwner(outer == kUnattributed ? std::string(path) : fmt::format("{}/{}", OwnerName(outer), path));
}

OwnerId Join(OwnerId outer, std::string_view path) {
  if (path.empty()) return outer;
  JoinedPaths* const paths = OfThisThread<JoinedPaths>();
  if (paths == nullptr) return InternJoined(outer, path);  // the thread has ended
  JoinedPaths::Joined& joined = paths->joined[(std::hash<std::string_view>()(path) ^ outer.value()) % paths->joined.size()];
  if (joined.outer == outer.value() && joined.path == path) return OwnerId(joined.owner);
  const OwnerId owner = InternJoined(outer, path);
  const std::string_view name = OwnerName(owner);
  joined = {outer.value(), owner.value(), name.substr(name.size() - path.size())};
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
  if (ends_ == ScopeId(0)) [[likely]] return;
  Open().End(ends_);
  if (RecordSink* sink = DefaultRecordSink()) sink->ScopeEnded(ends_);
}

}  // namespace gpuledger
