#include "gpuledger/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "host_backend.h"
#include "load_audit.h"
#include "load_pipeline.h"
#include "staging_watch.h"
#include "weight_rules.h"

namespace gpuledger {

std::string_view AssertionName(LoadAssertion assertion) {
  switch (assertion) {
    case LoadAssertion::kResidual:
      return "residual";
    case LoadAssertion::kStaging:
      return "staging";
    case LoadAssertion::kAudit:
      return "audit";
    case LoadAssertion::kOwnerless:
      return "ownerless";
  }
  return "";
}

bool LoadResult::holds(LoadAssertion assertion) const {
  return std::none_of(failures.begin(), failures.end(), [=](const LoadFailure& f) { return f.assertion == assertion; });
}

LoadedModel::LoadedModel(std::unique_ptr<RecordSink> sink, std::unique_ptr<CachingAllocator> allocator,
                         std::vector<LoadedWeight> weights, std::vector<Buffer> strays)
    : sink_(std::move(sink)),
      allocator_(std::move(allocator)),
      weights_(std::move(weights)),
      strays_(std::move(strays)) {}

LoadedModel& LoadedModel::operator=(LoadedModel&& other) noexcept {
  weights_ = std::move(other.weights_);  // the old blocks die before their allocator
  strays_ = std::move(other.strays_);
  allocator_ = std::move(other.allocator_);
  sink_ = std::move(other.sink_);
  return *this;
}

const LoadedWeight* LoadedModel::Find(std::string_view name) const {
  const auto found =
      std::find_if(weights_.begin(), weights_.end(), [=](const auto& w) { return w.tensor.name == name; });
  return found == weights_.end() ? nullptr : &*found;
}

absl::StatusOr<std::vector<CheckpointTensor>> LoadedModel::CheckpointTensors() const {
  if (!allocator_->upstream().capabilities().host_accessible) {
    return absl::UnimplementedError("a checkpoint is written from memory that the host can reach");
  }
  std::vector<CheckpointTensor> tensors;
  tensors.reserve(weights_.size());
  for (const LoadedWeight& weight : weights_) {
    const TensorInfo& t = weight.tensor;
    const auto* const data = static_cast<const std::byte*>(weight.block.ptr().unsafe_host_pointer());
    if (!weight.quantized) {
      tensors.emplace_back(KeptTensor{t.name, t.dtype, t.shape, [data](Bytes offset, std::span<std::byte> out) {
                                        if (!out.empty()) std::memcpy(out.data(), data + offset.count(), out.size());
                                        return absl::OkStatus();
                                      }});
      continue;
    }
    FloatType type = FloatType::kFloat32;
    FloatTypeOf(t.dtype, &type);
    const FourBitFormat format;  // Nf4Layout is its layout
    tensors.emplace_back(QuantizedWeight{
        t.name, t.shape, type, format, false, {data, FourBitLayout::Of(format, t.elements).size.count()}});
  }
  return tensors;
}

absl::StatusOr<LoadResult> Load(const LoadPlan& plan, Upstream& upstream, const LoadProgress& progress,
                                RecordSink* sink) {
  if (!upstream.capabilities().host_accessible) {
    return absl::UnimplementedError(
        fmt::format("this build loads into memory that the host can reach; {} is not", upstream.name()));
  }
  const bool faulty = plan.options.fault != LoadFault::kNone;
  if (faulty && plan.quantized_count() == 0) {
    return absl::InvalidArgumentError("a fault is planted in a weight that is quantized, and there is none");
  }
  if (!faulty) {
    if (absl::Status status = CheckFits(plan); !status.ok()) return status;
  }

  auto owned_watch = std::make_unique<StagingWatch>(plan.staging_budget_bytes, sink);
  const StagingWatch& watch = *owned_watch;
  AllocatorOptions options;
  options.cap = faulty ? Bytes::Max() : plan.predicted_peak_bytes;
  auto allocator = std::make_unique<CachingAllocator>(upstream, options, owned_watch.get());
  const AllocationSet before = LiveSourceAndStaging(allocator->ledger());

  HostBackend backend(*plan.file);
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<PipelineResult> loaded = RunPipeline(plan, *allocator, backend, progress);
  if (!loaded.ok()) return loaded.status();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;

  LoadResult result{.predicted_peak_bytes = plan.predicted_peak_bytes,
                    .predicted_in_use_bytes = plan.predicted_in_use_bytes,
                    .staging_budget_bytes = plan.staging_budget_bytes,
                    .source_bytes = plan.source_bytes(),
                    .seconds = took.count(),
                    .model = LoadedModel(std::move(owned_watch), std::move(allocator), std::move(loaded->weights),
                                         std::move(loaded->strays))};
  if (absl::Status status = AuditLoad(plan, before, watch, result); !status.ok()) return status;
  return result;
}

}  // namespace gpuledger
