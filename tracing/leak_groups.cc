#include "leak_groups.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <string>
#include <tuple>

#include "gpuledger/owner.h"
#include "gpuledger/sites.h"

namespace gpuledger {
namespace {

constexpr size_t kMostKept = 20;

void Count(const LiveBlock& block, ClassTotal* total) {
  total->bytes += block.charged;
  total->count += 1;
}

void Count(const LiveBlock& block, uint64_t age_ns, LeakGroup* group) {
  if (group->count == 0) group->tensor = block.tensor;
  if (group->tensor != block.tensor) group->tensor.clear();
  group->bytes += block.charged;
  group->count += 1;
  group->oldest_age_ns = std::max(group->oldest_age_ns, age_ns);
}

// What holds it, as far as is known: a traceback says more than the other paths.
std::vector<std::string> HoldersOf(const LiveBlock& block) {
  std::vector<std::string> all = block.tracebacks;
  all.insert(all.end(), block.holders.begin(), block.holders.end());
  return all;
}

bool LargestFirst(const LeakGroup& a, const LeakGroup& b) {
  return std::tuple(b.severity, b.bytes, a.owner, a.role, a.leak_class) < std::tuple(a.severity, a.bytes, b.owner, b.role, b.leak_class);
}

template <class Groups>
std::vector<LeakGroup> Sorted(Groups& groups) {
  std::vector<LeakGroup> sorted;
  for (auto& [key, group] : groups) sorted.push_back(std::move(group));
  std::sort(sorted.begin(), sorted.end(), LargestFirst);
  return sorted;
}

}  // namespace

namespace {

std::vector<TraceFrame> StackOf(SiteId site) {
  if (site == kNoSite) return {};
  if (std::vector<SiteFrame> taken; FramesOf(site, &taken)) {
    std::vector<TraceFrame> frames;
    for (SiteFrame& f : taken) {
      LoadedModule module;
      if (!f.python && !ModuleById(f.module, &module)) module = {};
      frames.push_back({f.python, std::move(f.function), f.python ? std::move(f.file) : std::move(module.path), f.line, f.offset, std::move(module.build_id)});
    }
    return frames;
  }
  if (site.value() >> 31 != 0) return {};  // a stack's id, and nobody took it in this process
  // SiteHere's: "leaky_load.cc:41 (Convert)".
  const std::string_view name = SiteName(site);
  TraceFrame frame;
  const size_t open = name.rfind(" (");
  const size_t colon = name.rfind(':', open);
  if (open == std::string_view::npos || colon == std::string_view::npos) return {};
  frame.file = name.substr(0, colon);
  std::from_chars(name.data() + colon + 1, name.data() + open, frame.line);
  frame.function = name.substr(open + 2, name.size() - open - 3);
  return {frame};
}

class ProcessNames final : public Names {
 public:
  std::string_view owner(OwnerId owner) const override { return OwnerName(owner); }
  std::vector<TraceFrame> stack(SiteId site) const override { return StackOf(site); }
};

}  // namespace

const Names& NamesOfThisProcess() {
  static const ProcessNames names;
  return names;
}

void FillGroups(const Names& names, const std::vector<LiveBlock>& blocks, const std::vector<uint64_t>& ages_ns, const std::vector<BlockVerdict>& verdicts,
                const ReportOptions& options, LeakReport* report) {
  std::map<std::tuple<LeakClass, Severity, OwnerId, Role, SiteId, std::vector<std::string>>, LeakGroup> leaks;
  std::map<std::pair<OwnerId, Role>, LeakGroup> kept;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const LiveBlock& block = blocks[i];
    const BlockVerdict& verdict = verdicts[i];
    Count(block, &report->classes[static_cast<size_t>(verdict.leak_class)]);
    if (verdict.undecided) Count(block, &report->undecided);
    if (verdict.leak_class == LeakClass::kDeferred) continue;
    LeakGroup* group = nullptr;
    if (verdict.leak_class == LeakClass::kKept) {
      if (block.gone) continue;
      group = &kept[{block.payer.owner, block.payer.role}];
    } else {
      const auto [at, fresh] = leaks.try_emplace({verdict.leak_class, verdict.severity, block.payer.owner, block.payer.role, block.site, HoldersOf(block)});
      group = &at->second;
      if (fresh) {
        group->holders = HoldersOf(block);
        group->stack = names.stack(block.site);
        group->suppressed_by = options.suppressions.Match(names.owner(block.payer.owner), group->stack);
      }
    }
    group->leak_class = verdict.leak_class;
    group->severity = verdict.severity;
    group->owner = names.owner(block.payer.owner);
    group->role = block.payer.role;
    Count(block, ages_ns[i], group);
  }
  report->leaks = Sorted(leaks);
  report->kept = Sorted(kept);
  if (report->kept.size() > kMostKept) report->kept.erase(report->kept.begin() + kMostKept, report->kept.end());
}

}  // namespace gpuledger
