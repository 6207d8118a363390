#include "gpuledger/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "load_pipeline.h"
#include "weight_rules.h"

namespace gpuledger {
namespace {

constexpr Bytes kSlotUnit = SizeClass::kGranule;  // holds 64 elements of any dtype that is quantized
constexpr uintmax_t kLargestConfig = uintmax_t{16} << 20;

std::string_view View(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

absl::StatusOr<std::string> ReadConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(fmt::format("{}: {}", path, error.message()));
  if (size > kLargestConfig) return absl::InvalidArgumentError(fmt::format("{}: {} B is no configuration", path, size));
  std::ifstream in(path, std::ios::binary);
  const nlohmann::json config = nlohmann::json::parse(in, nullptr, false);
  if (!config.is_object()) return absl::InvalidArgumentError(fmt::format("{}: not a JSON object", path));
  if (config.contains("quantization_config") && !config["quantization_config"].is_null()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the model is quantized already (quantization_config); load the original", path));
  }
  return config.dump();
}

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> OpenWeights(const std::string& directory) {
  const std::string path = directory + "/model.safetensors";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    const auto has = [&](const char* name) { return std::filesystem::exists(directory + "/" + name, error); };
    if (has("model.safetensors.index.json")) {
      return absl::NotFoundError(
          fmt::format("{}: not there. The checkpoint is split into shards (model.safetensors.index.json); "
                      "single-file checkpoints can be loaded so far",
                      path));
    }
    if (has("pytorch_model.bin")) {
      return absl::NotFoundError(
          fmt::format("{}: not there. pytorch_model.bin holds pickled weights, which are not read: "
                      "save the model with safe_serialization=True",
                      path));
    }
    return absl::NotFoundError(fmt::format("{}: not there, so {} is not a model directory", path, directory));
  }
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  return std::make_shared<const SafetensorsFile>(*std::move(file));
}

struct DryRun {
  Bytes peak_reserved;
  Bytes peak_in_use;
};

// The load's pipeline without its data.
absl::StatusOr<DryRun> RunDry(LoadPlan plan, Bytes cap) {
  plan.options.fault = LoadFault::kNone;
  FakeOptions endless;
  endless.total = std::max(Bytes(uint64_t{1} << 40), (plan.source_bytes() + plan.staging_budget_bytes) * 4u)
                      .RoundUpTo(endless.granularity);
  FakeUpstream upstream(endless);
  AllocatorOptions options;
  options.cap = cap;
  CachingAllocator allocator(upstream, options);
  DryBackend backend;
  const absl::StatusOr<PipelineResult> ran = RunPipeline(plan, allocator, backend, {});
  if (!ran.ok()) return ran.status();
  return DryRun{allocator.totals().peak_reserved, allocator.ledger().usage().peak};
}

// The fewest handles: from what it takes without a cap, downwards for as long as the pipeline completes.
absl::Status Predict(LoadPlan& plan) {
  absl::StatusOr<DryRun> run = RunDry(plan, Bytes::Max());
  const Bytes handle = FakeOptions().granularity;
  while (run.ok()) {
    plan.predicted_peak_bytes = run->peak_reserved;
    plan.predicted_in_use_bytes = run->peak_in_use;
    if (run->peak_reserved.is_zero()) return absl::OkStatus();
    run = RunDry(plan, run->peak_reserved - handle);
    if (absl::IsResourceExhausted(run.status())) return absl::OkStatus();
  }
  return run.status();
}

absl::Status CheckRing(const LoadOptions& options) {
  if (options.slots == 0) return absl::InvalidArgumentError("a load needs at least one slot");
  if (options.slots > 1024) return absl::InvalidArgumentError("more than 1024 slots");
  if (options.slot_size < kSlotUnit) {
    return absl::InvalidArgumentError(
        fmt::format("a slot of {} is too small: at least {}", ToString(options.slot_size), ToString(kSlotUnit)));
  }
  return absl::OkStatus();
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

absl::StatusOr<LoadPlan> PlanLoad(const std::string& directory, const LoadOptions& options, Bytes available) {
  if (absl::Status status = CheckRing(options); !status.ok()) return status;
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(fmt::format("{}: no such directory", directory));
  }
  absl::StatusOr<std::shared_ptr<const SafetensorsFile>> file = OpenWeights(directory);
  if (!file.ok()) return file.status();
  const absl::StatusOr<std::string> config = ReadConfig(directory);
  if (!config.ok()) return config.status();
  const absl::StatusOr<WeightRules> rules = WeightRules::For(*config, (*file)->tensors(), {});
  if (!rules.ok()) return rules.status();

  LoadPlan plan;
  plan.directory = directory;
  plan.file = *std::move(file);
  plan.options = options;
  plan.available = available;
  Bytes largest;
  for (const TensorInfo& tensor : plan.file->tensors()) {
    const WeightRule rule = rules->RuleFor(tensor);
    const bool quantize = rule.action == WeightAction::kQuantize;
    const Bytes final_bytes = quantize ? Nf4Layout::Of(tensor.elements).size : tensor.size;
    plan.weights.push_back({tensor, rule.action, rule.reason, final_bytes, rule.linear});
    plan.final_bytes += final_bytes;
    if (quantize) largest = std::max(largest, tensor.size);
  }
  std::stable_partition(plan.weights.begin(), plan.weights.end(),
                        [](const PlannedWeight& w) { return w.action == WeightAction::kQuantize; });
  plan.slot_size = std::min(options.slot_size.RoundDownTo(kSlotUnit), largest.RoundUpTo(kSlotUnit));
  plan.staging_budget_bytes = plan.slot_size * options.slots;
  if (absl::Status status = Predict(plan); !status.ok()) return status;
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
  const absl::StatusOr<DryRun> stopped = RunDry(plan, limit);
  if (!stopped.ok()) message += fmt::format(". Under it the load would stop here:\n{}", View(stopped.status()));
  return absl::ResourceExhaustedError(message);
}

}  // namespace gpuledger
