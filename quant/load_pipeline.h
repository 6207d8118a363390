// quant/load_pipeline.h - the order in which a load buys memory, written once for prediction and load.
//
// The pipeline decides which block is bought, transferred and freed when; a LoadBackend moves the data. The dry one
// moves none and runs over FakeUpstream, so a prediction cannot differ from its load.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <vector>

#include "gpuledger/load.h"

namespace gpuledger {

// Elements [first, first + count) of a weight, staged at `from`, to be quantized into its block at `block`.
struct StagedPart {
  FloatType type;
  uint64_t first;
  uint64_t count;
  DevicePtr from;
  DevicePtr block;
};

class LoadBackend {
 public:
  virtual ~LoadBackend() = default;
  // Begins to read `size` bytes of `tensor` from `offset` to `to`. Reads end in the order in which they began.
  virtual void StartRead(const TensorInfo& tensor, Bytes offset, Bytes size, DevicePtr to) = 0;
  // Waits for the oldest read that has not been waited for.
  virtual absl::Status FinishRead() = 0;
  // Waits for all reads; their results are dropped.
  virtual void AbandonReads() = 0;
  // Writes what a quantized weight's block holds besides codes and absmax: padding and table.
  virtual void PrepareBlock(const Nf4Layout& layout, DevicePtr block) = 0;
  virtual void Quantize(const Nf4Layout& layout, const StagedPart& part) = 0;
};

// Moves nothing: the backend of a prediction.
class DryBackend final : public LoadBackend {
 public:
  void StartRead(const TensorInfo&, Bytes, Bytes, DevicePtr) override {}
  absl::Status FinishRead() override { return absl::OkStatus(); }
  void AbandonReads() override {}
  void PrepareBlock(const Nf4Layout&, DevicePtr) override {}
  void Quantize(const Nf4Layout&, const StagedPart&) override {}
};

struct PipelineResult {
  std::vector<LoadedWeight> weights;
  std::vector<Buffer> strays;
};

// Runs the whole load on `allocator`. On error everything it bought is freed.
absl::StatusOr<PipelineResult> RunPipeline(const LoadPlan& plan, CachingAllocator& allocator, LoadBackend& backend,
                                           const LoadProgress& progress);

}  // namespace gpuledger
