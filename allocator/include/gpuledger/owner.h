// gpuledger/owner.h - who pays: interned owner paths, thread-local scopes, sites.
//
// An owner is a path such as "model/layers.3.mlp.up_proj.weight", interned once per process into an OwnerId. Scopes say
// who pays for what this thread allocates; they nest ("model" then "layers.3" pays as "model/layers.3"), belong to one
// thread, and can be captured and adopted by another (loader threads, backward threads). Outside any scope the payer is
// the named owner `unattributed`, or whom a runtime knows the thread to work for (payer_source.h). Ids and names live until
// the process ends. Thread-safe; legal after main().
//
// A scope may be declared transient: what is allocated in it, also by threads that adopted it, should be gone when it ends,
// unless somebody adopts it (Ledger::Transfer). What is not is an escape in a leak report.
#pragma once

#include <string_view>

#include "gpuledger/types.h"

namespace gpuledger {

inline constexpr OwnerId kUnattributed{0};

// The id of `path`, the same for equal paths. Allocates host memory the first time a path is seen.
// An empty path is `unattributed`.
GPULEDGER_EXPORT OwnerId InternOwner(std::string_view path);
// The path; valid until the process ends. Fatal for an id that InternOwner did not return.
GPULEDGER_EXPORT std::string_view OwnerName(OwnerId owner);
// True if `name` matches `glob`: `*` stays within one name (it crosses neither '.' nor '/'), `**` crosses them.
GPULEDGER_EXPORT bool OwnerMatches(std::string_view glob, std::string_view name);

// Who pays, and for what.
struct Payer {
  OwnerId owner = kUnattributed;
  Role role = Role::kOther;
  ScopeId scope{0};  // the innermost transient scope around, 0 if there is none
};
// The innermost scope of this thread; if it is in none, what payer_source.h has to say.
GPULEDGER_EXPORT Payer CurrentPayer() noexcept;
// Whether a transient scope is over. False for 0. Requires: `scope` came out of a Payer.
GPULEDGER_EXPORT bool ScopeEnded(ScopeId scope) noexcept;

// While it lives, allocations of this thread are paid by `path` below the scope around it. Stack-only; scopes of a
// thread end in the reverse order of their beginning (fatal otherwise). The path is joined and interned once: the next time
// a thread enters the same scope costs some ten nanoseconds.
class [[nodiscard]] GPULEDGER_EXPORT OwnerScope {
 public:
  enum class Lifetime : uint8_t { kOwners, kTransient };  // how long what is allocated in it may live
  [[nodiscard]] OwnerScope(std::string_view path, Role role, Lifetime lifetime = Lifetime::kOwners);
  [[nodiscard]] static OwnerScope Transient(std::string_view path, Role role) { return OwnerScope(path, role, Lifetime::kTransient); }
  // Adopts `payer` as it is, not below the scope around it: for a payer captured with CurrentPayer() on another thread.
  [[nodiscard]] explicit OwnerScope(Payer payer);
  ~OwnerScope();
  OwnerScope(const OwnerScope&) = delete;
  OwnerScope& operator=(const OwnerScope&) = delete;
  static void* operator new(size_t) = delete;
  static void* operator new[](size_t) = delete;

 private:
  Payer payer_;
  ScopeId ends_{0};  // the transient scope that ends with this one
  OwnerScope* outer_;
  friend Payer CurrentPayer() noexcept;
};

// The site of the line that calls it: a call stack of one frame. Full stacks come from the recorder; both are ids of
// one table. Allocates host memory the first time a line is seen.
// (clang 14 has no std::source_location: hence the builtins.)
GPULEDGER_EXPORT SiteId SiteHere(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                                 const char* function = __builtin_FUNCTION());
// "leaky_load.cc:41 (Convert)", or "" for kNoSite.
GPULEDGER_EXPORT std::string_view SiteName(SiteId site);

// What takes the call stack of the calling thread for the ways in that have no better site; null, and kNoSite, until a recorder
// sets it. Called with no lock held.
using SiteSource = SiteId (*)() noexcept;
GPULEDGER_EXPORT void SetSiteSource(SiteSource source) noexcept;
GPULEDGER_EXPORT SiteId CurrentSite() noexcept;

}  // namespace gpuledger
