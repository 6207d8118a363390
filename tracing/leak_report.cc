// From a trace to a report.
#include "gpuledger/leak_report.h"

#include <algorithm>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "aggregate.h"
#include "gpuledger/symbolise.h"
#include "leak_groups.h"
#include "redact.h"

namespace gpuledger {
namespace {

class NamesOfTrace final : public Names {
 public:
  NamesOfTrace(const TraceReader& trace, bool symbolise) : trace_(trace), symbolise_(symbolise) {}
  std::string_view owner(OwnerId owner) const override { return trace_.owner_name(owner); }
  std::vector<TraceFrame> stack(SiteId site) const override {
    const auto found = symbolised_.find(site.value());
    if (found != symbolised_.end()) return found->second;
    std::vector<TraceFrame> frames = trace_.site(site);
    if (symbolise_) Symbolise(frames);
    symbolised_.emplace(site.value(), frames);
    return frames;
  }

 private:
  const TraceReader& trace_;
  const bool symbolise_;
  mutable absl::flat_hash_map<uint32_t, std::vector<TraceFrame>> symbolised_;
};

// Blocks that were live at each ledger's peak: the trace once more, up to there.
std::vector<LiveBlock> BlocksAtPeak(TraceReader& trace, const Aggregate& whole) {
  std::vector<LiveBlock> blocks;
  trace.Rewind();
  Aggregate again;
  TraceEntry entry;
  while (trace.Next(&entry)) {
    again.Add(entry);
    for (const auto& [ledger, index] : whole.peak_indices()) {
      if (index != again.entries()) continue;
      for (const auto& [id, live] : again.live()) {
        if (live.ledger != ledger || live.pending) continue;
        LiveBlock& block = blocks.emplace_back();
        block.device = live.device, block.id = AllocationId(id), block.payer = live.payer;
        block.requested = live.requested, block.charged = live.charged;
        block.site = live.site, block.thread = live.thread, block.allocated = live.allocated;
      }
    }
  }
  std::sort(blocks.begin(), blocks.end(), [](const LiveBlock& a, const LiveBlock& b) {
    return a.charged != b.charged ? a.charged > b.charged : a.id < b.id;
  });
  return blocks;
}

void FillOutliers(const Aggregate& aggregate, const Names& names, LeakReport* report) {
  absl::flat_hash_map<std::pair<uint32_t, uint32_t>, OutlierGroup> groups;
  for (const auto& [id, live] : aggregate.live()) {
    if (live.pending || aggregate.entries() - live.index <= Growth::kLong) continue;
    const uint64_t siblings = aggregate.growth().ShortLived(live.site, live.charged);
    if (siblings < Growth::kSiblings) continue;
    OutlierGroup& group = groups[{live.payer.owner.value(), live.site.value()}];
    if (group.siblings == 0) {
      group.owner = names.owner(live.payer.owner);
      group.stack = names.stack(live.site);
    }
    group.bytes += live.charged;
    group.siblings = std::max(group.siblings, siblings);
  }
  for (auto& [key, group] : groups) report->outliers.push_back(std::move(group));
  std::sort(report->outliers.begin(), report->outliers.end(), [](const OutlierGroup& a, const OutlierGroup& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : a.owner < b.owner;
  });
}

}  // namespace

absl::StatusOr<LeakReport> ReportOnTrace(TraceReader& trace, const ReportOptions& options) {
  Aggregate aggregate;
  TraceEntry entry;
  while (trace.Next(&entry)) {
    aggregate.Add(entry);
    if (options.on_progress && aggregate.entries() % (1 << 18) == 0) options.on_progress(trace.progress());
  }
  const NamesOfTrace names(trace, options.symbolise);
  const Aggregate::Judged judged = aggregate.Judge();
  LeakReport report;
  report.entries = aggregate.entries();
  report.allocations = aggregate.allocations();
  report.in_use = Bytes(judged.in_use), report.pending = Bytes(judged.pending);
  report.live = report.in_use + report.pending;
  report.reserved = Bytes(judged.reserved), report.rounding = Bytes(judged.rounding);
  report.cached = Bytes(judged.reserved - std::min(judged.reserved, judged.in_use + judged.pending));
  report.settled = judged.context.settled;
  report.ended = judged.context.ended;
  report.undecided_why = judged.undecided_why;
  FillGroups(names, judged.blocks, judged.ages_ns, Classify(judged.blocks, judged.context), options, &report);
  Bytes sum;
  for (const ClassTotal& total : report.classes) sum += total.bytes;
  if (sum != report.live) {
    return absl::InternalError(fmt::format("the classes sum to {}, but {} were live", ToString(sum), ToString(report.live)));
  }
  uint64_t peak = 0;
  for (const auto& [ledger, device] : aggregate.devices()) Aggregate::Put(peak, device.peak);
  report.peak = Bytes(peak);
  for (const Aggregate::Share& share : aggregate.AtPeak()) {
    report.at_peak.push_back({std::string(names.owner(share.owner)), share.role, Bytes(share.bytes), share.count});
  }
  for (const Growth::Group& group : aggregate.growth().Growing(options.growth_warmup)) {
    GrowthGroup& shown = report.growth.emplace_back();
    shown.owner = names.owner(group.owner);
    shown.stack = names.stack(group.site);
    for (const uint64_t bytes : group.at_marks) shown.at_marks.emplace_back(bytes);
    shown.suppressed_by = options.suppressions.Match(shown.owner, shown.stack);
  }
  if (IsDecided(report)) report.undecided_why.clear();
  FillOutliers(aggregate, names, &report);
  report.trace = trace.info();
  if (options.blocks) {
    for (const LiveBlock& block : BlocksAtPeak(trace, aggregate)) {
      report.blocks_at_peak.push_back({block, std::string(names.owner(block.payer.owner)), names.stack(block.site)});
    }
  }
  if (options.redact) Redact(&report);
  return report;
}

bool IsDecided(const LeakReport& report) { return report.settled || (report.ended && report.undecided.count == 0); }

bool HasLeaks(const LeakReport& report) {
  const auto counts = [](const LeakGroup& group) { return group.severity == Severity::kError && group.suppressed_by.empty(); };
  return std::any_of(report.leaks.begin(), report.leaks.end(), counts) ||
         std::any_of(report.growth.begin(), report.growth.end(), [](const GrowthGroup& g) { return g.suppressed_by.empty(); });
}

}  // namespace gpuledger
