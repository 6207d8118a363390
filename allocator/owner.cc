#include "gpuledger/owner.h"

#include <deque>
#include <string>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "fork_guard.h"
#include "scopes.h"
#include "sync.h"

namespace gpuledger {
namespace {

// Names to dense ids, for owners and for sites. Names never move and never die: singletons are leaked on purpose.
class NameTable {
 public:
  explicit NameTable(std::string_view name_of_zero) { Intern(name_of_zero); }

  uint32_t Intern(std::string_view name) {
    MutexLock lock(mutex_);
    const auto found = ids_.find(absl::string_view(name.data(), name.size()));
    if (found != ids_.end()) return found->second;
    if (names_.size() > UINT32_MAX) Die("more than 2^32 names");
    const std::string& kept = names_.emplace_back(name);
    const auto id = static_cast<uint32_t>(names_.size() - 1);
    ids_.emplace(absl::string_view(kept), id);
    return id;
  }

  std::string_view Name(uint32_t id) const {
    MutexLock lock(mutex_);
    if (id >= names_.size()) Die(fmt::format("no name has the id {}", id));
    return names_[id];
  }

  [[nodiscard]] bool Has(uint32_t id) const {
    MutexLock lock(mutex_);
    return id < names_.size();
  }

  void LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { mutex_.Lock(); }
  void UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { mutex_.Unlock(); }

 private:
  mutable Mutex mutex_;
  std::deque<std::string> names_ GPULEDGER_GUARDED_BY(mutex_);
  absl::flat_hash_map<absl::string_view, uint32_t> ids_ GPULEDGER_GUARDED_BY(mutex_);
};

struct Tables {
  NameTable owners{"unattributed"};
  NameTable sites{""};
};

Tables& AllTables() {
  static Tables& tables = *new Tables;
  return tables;
}
NameTable& Owners() { return AllTables().owners; }
NameTable& Sites() { return AllTables().sites; }

bool CrossesName(char c) { return c == '.' || c == '/'; }

}  // namespace

void LockNamesForFork() {
  AllTables().owners.LockForFork();
  AllTables().sites.LockForFork();
}
void UnlockNamesAfterFork() {
  AllTables().sites.UnlockAfterFork();
  AllTables().owners.UnlockAfterFork();
}

OwnerId InternOwner(std::string_view path) { return path.empty() ? kUnattributed : OwnerId(Owners().Intern(path)); }

bool IsOwner(OwnerId owner) { return Owners().Has(owner.value()); }

std::string_view OwnerName(OwnerId owner) { return Owners().Name(owner.value()); }

bool OwnerMatches(std::string_view glob, std::string_view name) {
  // Iterative with one point to go back to for each kind of star: linear in practice, never exponential.
  constexpr size_t kNone = std::string_view::npos;
  size_t g = 0, n = 0;
  size_t star_g = kNone, star_n = 0, deep_g = kNone, deep_n = 0;
  while (n < name.size() || g < glob.size()) {
    if (glob.substr(g).substr(0, 2) == "**") {
      deep_g = g += 2, deep_n = n, star_g = kNone;
    } else if (g < glob.size() && glob[g] == '*') {
      star_g = ++g, star_n = n;
    } else if (g < glob.size() && n < name.size() && glob[g] == name[n]) {
      ++g, ++n;
    } else if (star_g != kNone && star_n < name.size() && !CrossesName(name[star_n])) {
      g = star_g, n = ++star_n;
    } else if (deep_g != kNone && deep_n < name.size()) {
      g = deep_g, n = ++deep_n, star_g = kNone;
    } else {
      return false;
    }
  }
  return true;
}

SiteId SiteHere(const char* file, int line, const char* function) {
  const std::string_view path(file);
  const size_t slash = path.rfind('/');
  const std::string_view name = slash == std::string_view::npos ? path : path.substr(slash + 1);
  return SiteId(Sites().Intern(fmt::format("{}:{} ({})", name, line, function)));
}

std::string_view SiteName(SiteId site) { return Sites().Name(site.value()); }

}  // namespace gpuledger
