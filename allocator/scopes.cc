// Scopes: who pays for what this thread allocates, and which transient scopes are open.
#include "scopes.h"

#include <array>
#include <atomic>
#include <functional>
#include <string>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include "gpuledger/payer_source.h"
#include "gpuledger/record.h"
#include "sync.h"
#include "this_thread.h"

namespace gpuledger {
namespace {

std::atomic<PayerSource*> payer_source = nullptr;

struct ThreadScopes {
  OwnerScope* innermost;
  PublishedPayer* published;  // what the outermost scope found for as long as it lasts

  void Enter(OwnerScope* scope, Payer payer) noexcept {
    if (innermost == nullptr) {
      PayerSource* const source = payer_source.load(std::memory_order_acquire);
      published = source == nullptr ? nullptr : source->ScopeEntered();
    }
    innermost = scope;
    if (published != nullptr) published->Set(payer);
  }
};
thread_local constinit ThreadScopes scopes_of_thread{nullptr, nullptr};

Payer PayerWithoutScope() noexcept {
  PayerSource* const source = payer_source.load(std::memory_order_acquire);
  return source == nullptr ? Payer{} : source->WithoutScope();
}

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

void SetPayerSource(PayerSource* source) noexcept { payer_source.store(source, std::memory_order_release); }

void StopPublishing() noexcept { scopes_of_thread.published = nullptr; }

Payer CurrentPayer() noexcept {
  const OwnerScope* const innermost = scopes_of_thread.innermost;
  return innermost != nullptr ? innermost->payer_ : PayerWithoutScope();
}

bool ScopeEnded(ScopeId scope) noexcept { return scope != ScopeId(0) && !Open().IsOpen(scope); }

OwnerScope::OwnerScope(std::string_view path, Role role, Lifetime lifetime) : payer_(CurrentPayer()), outer_(scopes_of_thread.innermost) {
  payer_.owner = Join(payer_.owner, path);
  payer_.role = role;
  if (lifetime == Lifetime::kTransient) payer_.scope = ends_ = Open().Open();
  scopes_of_thread.Enter(this, payer_);
}

OwnerScope::OwnerScope(Payer payer) : payer_(payer), outer_(scopes_of_thread.innermost) { scopes_of_thread.Enter(this, payer_); }

OwnerScope::~OwnerScope() {
  ThreadScopes& here = scopes_of_thread;
  if (here.innermost != this) Die("OwnerScope: scopes of a thread end in the reverse order of their beginning");
  here.innermost = outer_;
  if (here.published != nullptr) {
    here.published->Set(outer_ == nullptr ? Payer{} : outer_->payer_);
    if (outer_ == nullptr) here.published = nullptr;
  }
  if (ends_ == ScopeId(0)) [[likely]] return;
  Open().End(ends_);
  if (RecordSink* sink = DefaultRecordSink()) sink->ScopeEnded(ends_);
}

}  // namespace gpuledger
