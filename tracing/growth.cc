#include "growth.h"

#include <algorithm>

namespace gpuledger {
namespace {

uint64_t KeyOf(OwnerId owner, SiteId site) { return uint64_t{owner.value()} << 32 | site.value(); }
uint64_t KeyOf(SiteId site, Bytes charged) { return uint64_t{site.value()} << 16 | static_cast<uint64_t>(SizeClass::BinOf(charged)); }

}  // namespace

void Growth::Change(OwnerId owner, SiteId site, Bytes bytes, bool more) {
  const auto [at, fresh] = groups_.try_emplace(KeyOf(owner, site));
  Group& group = at->second;
  if (fresh) group.owner = owner, group.site = site, group.born = marks_;
  group.bytes = more ? group.bytes + bytes.count() : group.bytes - std::min(group.bytes, bytes.count());
}

void Growth::Mark() {
  ++marks_;
  for (auto& [key, group] : groups_) {
    const uint64_t before = group.at_marks.empty() ? 0 : group.at_marks.back();
    group.rises = group.bytes > before ? group.rises + 1 : 0;
    if (group.at_marks.size() == kMostMarks) group.at_marks.erase(group.at_marks.begin());
    group.at_marks.push_back(group.bytes);
    ++group.marks;
  }
}

std::vector<Growth::Group> Growth::Growing(uint64_t warmup) const {
  constexpr uint64_t kFewest = 3;
  std::vector<Group> growing;
  if (marks_ < warmup + kFewest) return growing;
  const uint64_t judged = marks_ - warmup;  // marks after the warm-up; each must be above the one before it
  for (const auto& [key, group] : groups_) {
    if (group.born <= warmup && group.rises >= judged) growing.push_back(group);
  }
  std::sort(growing.begin(), growing.end(), [](const Group& a, const Group& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : KeyOf(a.owner, a.site) < KeyOf(b.owner, b.site);
  });
  return growing;
}

void Growth::Freed(SiteId site, Bytes charged, uint64_t lifetime) {
  if (site == kNoSite || lifetime > kShort || charged.is_zero()) return;
  ++short_lived_[KeyOf(site, charged)];
}

uint64_t Growth::ShortLived(SiteId site, Bytes charged) const {
  if (site == kNoSite || charged.is_zero()) return 0;
  const auto found = short_lived_.find(KeyOf(site, charged));
  return found == short_lived_.end() ? 0 : found->second;
}

}  // namespace gpuledger
