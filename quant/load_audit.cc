#include "load_audit.h"

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace gpuledger {
namespace {

bool IsSourceOrStaging(Role role) { return role == Role::kSource || role == Role::kStaging; }

std::string Describe(const LiveAllocation& a) {
  std::string text = fmt::format("allocation {}, {} in role {}, charged to {}", a.id.value(), ToString(a.charged),
                                 RoleName(a.payer.role), OwnerName(a.payer.owner));
  if (a.site != kNoSite) text += fmt::format(" at {}", SiteName(a.site));
  if (a.pending) text += ", pending";
  return text;
}

std::string Describe(const std::vector<LiveAllocation>& allocations) {
  std::vector<std::string> each;
  for (const LiveAllocation& a : allocations) each.push_back(Describe(a));
  return fmt::format("{}", fmt::join(each, "; "));
}

class Auditor {
 public:
  Auditor(const LoadPlan& plan, const AllocationSet& before, const StagingWatch& watch, LoadResult& result)
      : plan_(plan),
        before_(before),
        watch_(watch),
        result_(result),
        allocator_(result.model.allocator()),
        ledger_(allocator_.ledger()) {
    for (const LoadedWeight& weight : weights()) by_owner_.emplace(weight.owner, &weight);
  }

  void Run() {
    Measure();
    CheckResidual();
    CheckStaging();
    CheckFormats();
    CheckOwners();
  }

 private:
  const std::vector<LoadedWeight>& weights() const { return result_.model.weights(); }

  void Fail(LoadAssertion assertion, std::string weight, Bytes bytes, std::string message) {
    result_.failures.push_back({assertion, std::move(weight), bytes, std::move(message)});
  }

  // The weight that pays as `owner`; the owner's own name if none does.
  std::string NameOf(OwnerId owner) const {
    const auto found = by_owner_.find(owner);
    return found != by_owner_.end() ? found->second->tensor.name : std::string(OwnerName(owner));
  }

  void Measure() {
    const Totals totals = allocator_.totals();
    result_.peak_bytes = totals.peak_reserved;
    result_.in_use_peak_bytes = ledger_.usage().peak;
    result_.staging_peak_bytes = ledger_.usage(Role::kStaging).peak;
    for (const LoadedWeight& weight : weights()) {
      if (weight.block.empty()) continue;
      const absl::StatusOr<LiveAllocation> live = allocator_.Find(weight.block.ptr());
      if (live.ok()) result_.final_bytes += live->requested;
    }
  }

  void CheckResidual() {
    AllocationSet reported;
    const auto report = [&](OwnerId owner, Bytes bytes, const std::vector<LiveAllocation>& allocations) {
      for (const LiveAllocation& a : allocations) reported.insert(a.id);
      result_.residual_bytes += bytes;
      Fail(LoadAssertion::kResidual, NameOf(owner), bytes,
           fmt::format("{} left {} behind: {}.", NameOf(owner), ToString(bytes), Describe(allocations)));
    };
    for (size_t w = 0; w < weights().size(); ++w) {
      if (plan_.weights[w].action != WeightAction::kQuantize) continue;
      const LoadedWeight& weight = weights()[w];
      const absl::StatusOr<Residual> residual = ledger_.residual(weight.owner);
      result_.residuals.push_back({weight.tensor.name, residual.ok() ? residual->bytes : Bytes()});
      if (!residual.ok()) {
        Fail(LoadAssertion::kResidual, weight.tensor.name, Bytes(),
             fmt::format("{} has no verdict: {}.", weight.tensor.name, residual.status().ToString()));
      } else if (!residual->bytes.is_zero()) {
        report(weight.owner, residual->bytes, residual->allocations);
      }
    }
    // By allocation, since a total hides a leak behind an unrelated free.
    for (const LiveAllocation& a : ledger_.live()) {
      if (!IsSourceOrStaging(a.payer.role) || before_.contains(a.id) || reported.contains(a.id)) continue;
      report(a.payer.owner, a.charged, {a});
    }
  }

  void CheckStaging() {
    if (result_.staging_peak_bytes <= plan_.staging_budget_bytes) return;
    const std::vector<StagingWatch::Staged> staged = watch_.over_budget();
    absl::flat_hash_map<OwnerId, Bytes> by_owner;
    std::vector<std::string> holders;
    for (const StagingWatch::Staged& s : staged) {
      by_owner[s.owner] += s.charged;
      holders.push_back(
          fmt::format("{} {} (allocation {})", NameOf(s.owner), ToString(s.charged), s.allocation.value()));
    }
    std::string largest;
    Bytes most;
    for (const auto& [owner, bytes] : by_owner) {
      if (by_owner_.contains(owner) && bytes > most) largest = NameOf(owner), most = bytes;
    }
    const Bytes over = result_.staging_peak_bytes - plan_.staging_budget_bytes;
    Fail(LoadAssertion::kStaging, largest, over,
         fmt::format("{} were staged at one instant, {} over the budget of {}: {}.",
                     ToString(result_.staging_peak_bytes), ToString(over), ToString(plan_.staging_budget_bytes),
                     fmt::join(holders, "; ")));
  }

  void CheckFormats() {
    for (size_t w = 0; w < weights().size(); ++w) {
      const LoadedWeight& weight = weights()[w];
      const TensorInfo& tensor = weight.tensor;
      AuditEntry entry{tensor.name, plan_.weights[w].format, ActualFormat(weight, plan_.weights[w])};
      if (entry.planned != entry.actual) {
        const Bytes held = weight.block.size();
        Fail(LoadAssertion::kAudit, tensor.name, held,
             fmt::format("{} was planned {} in {} and is {} in {}.", tensor.name, entry.planned,
                         ToString(plan_.weights[w].final_bytes), entry.actual, ToString(held)));
      }
      result_.audit.push_back(std::move(entry));
    }
  }

  // From what the block is charged for, what went into it and, for 4 bit, the tables that it holds.
  std::string ActualFormat(const LoadedWeight& weight, const PlannedWeight& planned) const {
    const TensorInfo& tensor = weight.tensor;
    // Kept as planned: the bytes of the file, whatever they are called.
    const bool as_in_file = !weight.quantized && planned.action == WeightAction::kKeep;
    const std::string source = as_in_file ? planned.format : std::string(DtypeName(tensor.dtype));
    if (tensor.size.is_zero()) return source;
    const absl::StatusOr<LiveAllocation> live = allocator_.Find(weight.block.ptr());
    if (weight.block.empty() || !live.ok()) return "missing";
    const std::string format = weight.quantized ? ToString(weight.format) : source;
    const Bytes size = weight.quantized ? weight.layout().size : tensor.size;
    if (live->requested != size) return fmt::format("{} in a block of {}", format, ToString(live->requested));
    if (weight.quantized && !HasTables(weight)) return "damaged: its block does not hold the tables of its format";
    if (weight.consumed == tensor.size) return format;
    return fmt::format("{} from {} of {}", format, ToString(weight.consumed), ToString(tensor.size));
  }

  static bool HasTables(const LoadedWeight& weight) {
    const FourBitLayout layout = weight.layout();
    const auto holds = [&](Bytes at, const auto& table) {
      return std::memcmp((weight.block.ptr() + at).unsafe_host_pointer(), table.data(), sizeof(table)) == 0;
    };
    return holds(layout.table_at, CodeTable(layout.format.type)) &&
           (!layout.format.double_quant || holds(layout.nested_table_at, NestedTable()));
  }

  void CheckOwners() {
    for (const LiveAllocation& a : ledger_.live()) {
      if (a.payer.owner != kUnattributed) continue;
      result_.ownerless_bytes += a.charged;
      const auto [weight, relation] = WeightNear(a);
      Fail(LoadAssertion::kOwnerless, weight, a.charged,
           fmt::format("{} have no owner: {}{}.", ToString(a.charged), relation + weight + ": ", Describe(a)));
    }
    const Totals t = allocator_.totals();
    const Bytes held = t.in_use + t.pending + t.cached;
    if (t.reserved == held) return;
    const Bytes difference = std::max(t.reserved, held) - std::min(t.reserved, held);
    result_.ownerless_bytes += difference;
    Fail(LoadAssertion::kOwnerless, "", difference,
         fmt::format("reserved {} is not in use {} + pending {} + cached {}: {} are not accounted for.",
                     ToString(t.reserved), ToString(t.in_use), ToString(t.pending), ToString(t.cached),
                     ToString(difference)));
  }

  // The weight whose block this is, else the one whose block was bought before it.
  std::pair<std::string, std::string> WeightNear(const LiveAllocation& a) const {
    std::pair<std::string, std::string> nearest;
    uint64_t nearest_id = 0;
    for (const LoadedWeight& weight : weights()) {
      if (weight.block.empty()) continue;
      if (weight.block.ptr() == a.address) return {weight.tensor.name, "the block of "};
      const absl::StatusOr<LiveAllocation> live = allocator_.Find(weight.block.ptr());
      if (!live.ok() || live->id > a.id || live->id.value() < nearest_id) continue;
      nearest_id = live->id.value();
      nearest = {weight.tensor.name, "bought after the block of "};
    }
    return nearest;
  }

  const LoadPlan& plan_;
  const AllocationSet& before_;
  const StagingWatch& watch_;
  LoadResult& result_;
  CachingAllocator& allocator_;
  const Ledger& ledger_;
  absl::flat_hash_map<OwnerId, const LoadedWeight*> by_owner_;
};

}  // namespace

AllocationSet LiveSourceAndStaging(const Ledger& ledger) {
  AllocationSet ids;
  for (const LiveAllocation& a : ledger.live()) {
    if (IsSourceOrStaging(a.payer.role)) ids.insert(a.id);
  }
  return ids;
}

absl::Status AuditLoad(const LoadPlan& plan, const AllocationSet& before, const StagingWatch& watch,
                       LoadResult& result) {
  if (absl::Status status = result.model.allocator().Settle(); !status.ok()) return status;
  if (absl::Status status = result.model.allocator().CheckInvariants(); !status.ok()) return status;
  Auditor(plan, before, watch, result).Run();
  return absl::OkStatus();
}

}  // namespace gpuledger
