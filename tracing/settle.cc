#include "gpuledger/settle.h"

#include <algorithm>
#include <string>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "facts.h"
#include "gpuledger/process.h"
#include "gpuledger/recorder.h"
#include "leak_groups.h"

namespace gpuledger {

struct Settle::Impl {
  // Side by side: what is judged, where it is, how old it was.
  std::vector<LiveBlock> blocks;
  std::vector<Place> places;     // addresses inverted, so that nobody takes them for the program's
  std::vector<uint64_t> ages_ns;
  LeakReport ledgers;            // the figures that come from the ledgers
  std::string broken;            // the equation that did not hold at the beginning
  uint64_t facts_before = 0;
  VerdictContext context;
  bool completed = false;
  std::string not_completed = "streams were not waited for";

  void Begin(LedgerKeeper& keeper);
  void Step(SettleStep step);
  void LearnFacts();
};

namespace {

void Tell(SettleStep step) {
  if (Recorder* recorder = Recorder::OfProcess()) recorder->Settle(step);
}

// So that a search for addresses does not find those that lay here.
void Wipe(std::vector<LiveAllocation>& allocations) {
  for (LiveAllocation& a : allocations) a.address = DevicePtr::Null(a.address.device());
  asm volatile("" : : "r"(allocations.data()) : "memory");
}

}  // namespace

void Settle::Impl::Begin(LedgerKeeper& keeper) {
  LedgerMoment moment = keeper.ledger().moment();
  const uint64_t now = keeper.now().value();
  Bytes in_use, pending;
  for (const LiveAllocation& a : moment.live) {
    LiveBlock block;
    block.device = a.address.device();
    block.id = a.id;
    block.payer = a.payer;
    block.requested = a.requested;
    block.charged = a.charged;
    block.site = a.site;
    block.thread = a.thread;
    block.allocated = a.time;
    block.pending = a.pending;
    (a.pending ? pending : in_use) += a.charged;
    blocks.push_back(std::move(block));
    places.push_back({~a.address.address(), a.requested});
    ages_ns.push_back(now - std::min(now, a.time.value()));
  }
  if (in_use != moment.usage.in_use || pending != moment.usage.pending) {
    broken = fmt::format("the live blocks sum to {} in use and {} pending, their ledger says {} and {}", ToString(in_use), ToString(pending),
                         ToString(moment.usage.in_use), ToString(moment.usage.pending));
  }
  Wipe(moment.live);
  const Totals totals = keeper.totals();
  ledgers.in_use += in_use, ledgers.pending += pending, ledgers.live += in_use + pending;
  ledgers.rounding += moment.usage.in_use - moment.usage.requested;
  ledgers.reserved += totals.reserved, ledgers.cached += totals.cached;
  ledgers.peak += moment.usage.peak;
  for (const OwnerUsage& row : moment.owners) {
    if (row.usage.at_device_peak.is_zero()) continue;
    ledgers.at_peak.push_back({std::string(OwnerName(row.payer.owner)), row.payer.role, row.usage.at_device_peak, 0});
  }
}

Settle::Settle() : impl_(std::make_unique<Impl>()) {
  Tell(SettleStep::kBegin);
  impl_->facts_before = NewestFact();
  ForEachKeeper([this](LedgerKeeper& keeper) { impl_->Begin(keeper); });
  std::stable_sort(impl_->ledgers.at_peak.begin(), impl_->ledgers.at_peak.end(),
                   [](const PeakShare& a, const PeakShare& b) { return a.bytes > b.bytes; });
}

Settle::~Settle() = default;

// Which of the blocks have gone since the last step.
void Settle::Impl::Step(SettleStep step) {
  struct Now {
    Payer payer;
    bool pending;
  };
  absl::flat_hash_map<AllocationId, Now> live;
  context.open_lineages.clear(), context.closed_lineages.clear();
  ForEachKeeper([&](LedgerKeeper& keeper) {
    LedgerMoment moment = keeper.ledger().moment();
    for (const LiveAllocation& a : moment.live) live.emplace(a.id, Now{a.payer, a.pending});
    Wipe(moment.live);
    context.open_lineages.insert(context.open_lineages.end(), moment.open_lineages.begin(), moment.open_lineages.end());
    context.closed_lineages.insert(context.closed_lineages.end(), moment.closed_lineages.begin(), moment.closed_lineages.end());
  });
  std::sort(context.open_lineages.begin(), context.open_lineages.end());
  std::sort(context.closed_lineages.begin(), context.closed_lineages.end());
  std::erase_if(context.closed_lineages, [this](OwnerId weight) {  // closed for one ledger, under way again in another
    return std::binary_search(context.open_lineages.begin(), context.open_lineages.end(), weight);
  });
  for (LiveBlock& block : blocks) {
    if (block.gone) continue;
    const auto now = live.find(block.id);
    // A block in use has gone once it is freed, though its bytes may be pending still.
    if (now == live.end() || (now->second.pending && !block.pending)) {
      block.gone = true;
      block.gone_by = step;
    } else {
      block.payer = now->second.payer;  // it may have been adopted
    }
  }
  if (step != SettleStep::kEnd) return;
  absl::flat_hash_set<AllocationId> ids;
  for (const auto& [id, now] : live) ids.insert(id);
  KeepFactsOf(ids);
}

absl::Status Settle::Complete() {
  absl::Status first;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    // Other threads may go on freeing: what counts is whether the blocks that were pending have completed (below).
    if (const absl::Status s = keeper.Settle(); !s.ok() && first.ok()) first = s;
  });
  impl_->Step(SettleStep::kCompleted);
  const bool left = std::any_of(impl_->blocks.begin(), impl_->blocks.end(), [](const LiveBlock& b) { return b.pending && !b.gone; });
  impl_->completed = first.ok() || !left;
  if (!impl_->completed) {
    impl_->not_completed = fmt::format("pending blocks could not be completed: {}", std::string_view(first.message().data(), first.message().size()));
    return first;
  }
  Tell(SettleStep::kCompleted);
  return absl::OkStatus();
}

void Settle::Collected() {
  impl_->Step(SettleStep::kCollected);
  Tell(SettleStep::kCollected);
}

void Settle::Released() {
  impl_->Step(SettleStep::kReleased);
  Tell(SettleStep::kReleased);
}

absl::Status Settle::FindLost() {
  absl::StatusOr<std::vector<LiveAllocation>> lost = gpuledger::FindLost();
  if (!lost.ok()) return lost.status();
  for (const LiveAllocation& a : *lost) {
    // One that was freed meanwhile is none.
    static_cast<void>(gpuledger::NoteFact(a.address.address(), FactKind::kUnreachable, 0, ""));
  }
  Wipe(*lost);
  return absl::OkStatus();
}

absl::Status Settle::NoteFact(uint64_t address, FactKind kind, uint64_t value, std::string_view text) {
  return gpuledger::NoteFact(address, kind, value, text);
}

// Holders were true when they were seen, which may be long ago: they say how a block came to stay. What a verdict hangs on
// must be of this settle.
void Settle::Impl::LearnFacts() {
  for (LiveBlock& block : blocks) {
    std::vector<std::string> aliases;
    for (KnownFact& fact : FactsOf(block.id)) {
      const bool now = fact.number > facts_before;
      switch (fact.kind) {
        case FactKind::kHolder: block.holders.push_back(std::move(fact.text)); break;
        case FactKind::kTraceback: (now ? block.tracebacks : block.holders).push_back(std::move(fact.text)); break;
        case FactKind::kAliases: aliases.push_back(std::move(fact.text)); break;
        case FactKind::kLargestView:
          if (now) block.largest_view = fact.value;
          break;
        case FactKind::kUnreachable: block.unreachable = now; break;
        case FactKind::kTensor: block.tensor = std::move(fact.text); break;
      }
    }
    block.holders.insert(block.holders.end(), std::make_move_iterator(aliases.begin()), std::make_move_iterator(aliases.end()));
  }
}

void Settle::End() {
  Impl& s = *impl_;
  if (s.context.settled) return;
  s.LearnFacts();  // before those of what goes now are dropped
  s.Step(SettleStep::kEnd);
  s.context.settled = s.completed;
  for (const LiveBlock& block : s.blocks) {
    if (ScopeEnded(block.payer.scope)) s.context.ended_scopes.push_back(block.payer.scope);
  }
  std::sort(s.context.ended_scopes.begin(), s.context.ended_scopes.end());
  if (s.completed) Tell(SettleStep::kEnd);
}

std::vector<Settle::Place> Settle::places() const {
  std::vector<Place> places;
  for (size_t i = 0; i < impl_->blocks.size(); ++i) {
    if (!impl_->blocks[i].pending && !impl_->blocks[i].gone) places.push_back({~impl_->places[i].address, impl_->places[i].size});
  }
  return places;
}

absl::StatusOr<LeakReport> Settle::Report(const ReportOptions& options) const {
  const Impl& s = *impl_;
  if (!s.broken.empty()) return absl::InternalError(s.broken);
  LeakReport report = s.ledgers;
  report.settled = s.context.settled;
  if (!report.settled) report.undecided_why = s.completed ? "the settle did not come to its end" : s.not_completed;
  FillGroups(NamesOfThisProcess(), s.blocks, s.ages_ns, Classify(s.blocks, s.context), options, &report);
  Bytes sum;
  for (const ClassTotal& total : report.classes) sum += total.bytes;
  if (sum != report.live) {
    return absl::InternalError(fmt::format("the classes sum to {}, but {} were live when the settle began", ToString(sum), ToString(report.live)));
  }
  return report;
}

}  // namespace gpuledger
