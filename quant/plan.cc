#include "gpuledger/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "load_pipeline.h"
#include "quant_state.h"
#include "weight_rules.h"

namespace gpuledger {
namespace {

constexpr Bytes kSlotUnit = SizeClass::kGranule;
constexpr uint64_t kMostSlots = 1024;
constexpr uint64_t kMostThreads = 256;

std::string_view View(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

struct DryRun {
  Bytes peak_reserved;
  Bytes peak_in_use;
};

// The load's pipeline without its data.
absl::StatusOr<DryRun> RunDry(LoadPlan plan, Bytes cap, const Progress& progress) {
  plan.options.fault = LoadFault::kNone;
  plan.options.verify = false;  // goes through the same slots once more
  FakeOptions endless;
  const Bytes most = plan.source_bytes() + plan.staging_budget_bytes + plan.scratch_size;
  endless.total = std::max(Bytes(uint64_t{1} << 40), most * 4u)
                      .RoundUpTo(endless.granularity);
  FakeUpstream upstream(endless);
  AllocatorOptions options;
  options.cap = cap;
  CachingAllocator allocator(upstream, options);
  DryBackend backend;
  const absl::StatusOr<PipelineResult> ran = RunPipeline(plan, allocator, backend, progress);
  if (!ran.ok()) return ran.status();
  return DryRun{allocator.totals().peak_reserved, allocator.ledger().usage().peak};
}

// The fewest handles: fewer than the bytes in use at the peak cannot do, so from there upwards until the pipeline
// completes. It does so at the latest with what it takes without a cap.
absl::Status Predict(LoadPlan& plan, const Progress& progress) {
  absl::StatusOr<DryRun> run = RunDry(plan, Bytes::Max(), progress);
  if (!run.ok()) return run.status();
  const Bytes handle = FakeOptions().granularity;
  plan.predicted_in_use_bytes = run->peak_in_use;
  plan.predicted_peak_bytes = run->peak_reserved;
  for (Bytes cap = run->peak_in_use.RoundUpTo(handle); cap < plan.predicted_peak_bytes; cap += handle) {
    run = RunDry(plan, cap, progress);
    if (run.ok()) {
      plan.predicted_peak_bytes = run->peak_reserved;
    } else if (!absl::IsResourceExhausted(run.status())) {
      return run.status();
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const LoadOptions& options) {
  const auto refuse = [](std::string message) { return absl::InvalidArgumentError(std::move(message)); };
  if (!IsBlockSize(options.format.block)) {
    return refuse(fmt::format("blocks of {} elements: the size is a power of two from {} to {}", options.format.block,
                              kSmallestBlock, kLargestBlock));
  }
  if (options.slots == 0) return refuse("a load needs at least one slot");
  if (options.slots > kMostSlots) return refuse(fmt::format("{} slots: at most {}", options.slots, kMostSlots));
  if (options.threads > kMostThreads) return refuse(fmt::format("{} threads: at most {}", options.threads, kMostThreads));
  const Bytes least = std::max(kSlotUnit, Bytes(sizeof(float)) * options.format.block);
  if (options.slot_size < least) {
    return refuse(fmt::format("a slot of {} is too small: at least {}, a block of float32", ToString(options.slot_size),
                              ToString(least)));
  }
  return absl::OkStatus();
}

// What asks for other 4-bit weights than a model has stored is refused, not ignored.
absl::Status CheckStored(const ModelSource& source, const std::vector<StoredWeight>& stored, const LoadOptions& options) {
  if (stored.empty()) return absl::OkStatus();
  const auto refuse = [&](std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("{}: is in 4 bit already ({}); {} the original weights", source.name(),
                                                  ToString(stored.front().format), what));
  };
  if (!options.skip.empty() || !options.only.empty()) return refuse("choosing what is quantized needs");
  if (options.verify) return refuse("verifying needs");
  const auto other = [&](const StoredWeight& weight) { return weight.format != options.format; };
  if (options.format != FourBitFormat() && std::any_of(stored.begin(), stored.end(), other)) {
    return refuse(fmt::format("{} needs", ToString(options.format)));
  }
  return absl::OkStatus();
}

// A weight of a model that is in 4 bit already: kept as it is, under the format that it has.
void DescribeStored(const std::vector<StoredWeight>& stored, LoadPlan& plan) {
  absl::flat_hash_map<std::string_view, const StoredWeight*> weights, parts;
  for (const StoredWeight& weight : stored) {
    weights.emplace(weight.name, &weight);
    for (const TensorInfo* part : {weight.absmax, weight.table, weight.nested_absmax, weight.nested_table, weight.state}) {
      if (part != nullptr) parts.emplace(part->name, &weight);
    }
  }
  for (PlannedWeight& planned : plan.weights) {
    if (const auto found = weights.find(planned.tensor.name); found != weights.end()) {
      planned.format = ToString(found->second->format) + ", as stored";
      planned.reason = "4-bit in the file";
      planned.linear = true;
    } else if (const auto part = parts.find(planned.tensor.name); part != parts.end()) {
      planned.reason = "scales or tables of a 4-bit weight";
    } else {
      planned.reason = "not quantized in the file";
    }
  }
}

// Every weight's action, from configuration, names, shapes and dtypes.
absl::Status DecideWeights(LoadPlan& plan) {
  const absl::StatusOr<std::vector<StoredWeight>> stored = FindStoredWeights(*plan.source);
  if (!stored.ok()) return stored.status();
  plan.stored_4bit = !stored->empty();
  const LoadOptions& options = plan.options;
  if (absl::Status status = CheckStored(*plan.source, *stored, options); !status.ok()) return status;
  const absl::StatusOr<WeightRules> rules =
      WeightRules::For(plan.source->config(), plan.source->tensors(), {options.skip, options.only});
  if (!rules.ok()) return rules.status();
  for (const TensorInfo& tensor : plan.source->tensors()) {
    WeightRule rule = rules->RuleFor(tensor);
    if (plan.stored_4bit) rule.action = WeightAction::kKeep;
    const bool quantize = rule.action == WeightAction::kQuantize;
    plan.weights.push_back({.tensor = tensor,
                            .action = rule.action,
                            .reason = std::move(rule.reason),
                            .format = quantize ? ToString(options.format) : std::string(DtypeName(tensor.dtype)),
                            .final_bytes = quantize ? FourBitLayout::Of(options.format, tensor.elements).size : tensor.size,
                            .linear = rule.linear,
                            .expert = rule.expert});
  }
  if (plan.stored_4bit) DescribeStored(*stored, plan);
  std::stable_partition(plan.weights.begin(), plan.weights.end(),
                        [](const PlannedWeight& w) { return w.action == WeightAction::kQuantize; });
  return absl::OkStatus();
}

// Slots and scratch, sized for the largest weight.
void SizeStaging(LoadPlan& plan) {
  Bytes largest;
  uint64_t most_blocks = 0;
  for (const PlannedWeight& weight : plan.weights) {
    plan.final_bytes += weight.final_bytes;
    if (weight.action != WeightAction::kQuantize) continue;
    largest = std::max(largest, weight.tensor.size);
    most_blocks = std::max(most_blocks, BlockCount(weight.tensor.elements, plan.options.format.block));
  }
  plan.slot_size = std::min(plan.options.slot_size.RoundDownTo(kSlotUnit), largest.RoundUpTo(kSlotUnit));
  plan.staging_budget_bytes = plan.slot_size * plan.options.slots;
  if (plan.options.format.double_quant) plan.scratch_size = Bytes(sizeof(float)) * most_blocks;
}

}  // namespace

std::string_view ActionName(WeightAction action) { return action == WeightAction::kQuantize ? "quantize" : "keep"; }

bool ParseLoadFault(std::string_view name, LoadFault* fault) {
  constexpr std::array<std::pair<std::string_view, LoadFault>, 4> kNames = {{{"residual", LoadFault::kResidual},
                                                                             {"staging", LoadFault::kStaging},
                                                                             {"audit", LoadFault::kAudit},
                                                                             {"ownerless", LoadFault::kOwnerless}}};
  for (const auto& [known, value] : kNames) {
    if (name != known) continue;
    *fault = value;
    return true;
  }
  return false;
}

uint64_t LoadPlan::quantized_count() const {
  return static_cast<uint64_t>(std::count_if(
      weights.begin(), weights.end(), [](const PlannedWeight& w) { return w.action == WeightAction::kQuantize; }));
}

Bytes LoadPlan::source_bytes() const {
  Bytes sum;
  for (const PlannedWeight& weight : weights) sum += weight.tensor.size;
  return sum;
}

absl::StatusOr<LoadPlan> PlanLoad(std::shared_ptr<const ModelSource> source, const LoadOptions& options,
                                  Bytes available, const Progress& progress) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  LoadPlan plan;
  plan.source = std::move(source);
  plan.options = options;
  plan.available = available;
  if (absl::Status status = DecideWeights(plan); !status.ok()) return status;
  SizeStaging(plan);
  if (absl::Status status = Predict(plan, progress); !status.ok()) return status;
  plan.fits = plan.predicted_peak_bytes <= std::min(options.cap, available);
  return plan;
}

absl::Status CheckFits(const LoadPlan& plan) {
  const bool by_cap = plan.options.cap <= plan.available;
  const Bytes limit = std::min(plan.options.cap, plan.available);
  if (plan.predicted_peak_bytes <= limit) return absl::OkStatus();
  std::string message = fmt::format("the load reserves {} at its peak, and {} {}: {} short",
                                    ToString(plan.predicted_peak_bytes), by_cap ? "the cap is" : "the device has",
                                    ToString(limit), ToString(plan.predicted_peak_bytes - limit));
  const absl::StatusOr<DryRun> stopped = RunDry(plan, limit, {});
  if (!stopped.ok()) {
    // The allocator's own advice is for a program that could free something: a load has only its cap.
    std::string_view report = View(stopped.status());
    report = report.substr(0, report.find("  what would help:"));
    message += fmt::format(". Under it the load would stop here:\n{}  what would help: {}; `gpuledger plan` says whether smaller slots do", report,
                           by_cap ? fmt::format("a cap of {}", ToString(plan.predicted_peak_bytes)) : "a larger device");
  }
  return absl::ResourceExhaustedError(message);
}

}  // namespace gpuledger
