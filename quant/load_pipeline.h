// quant/load_pipeline.h - the order in which a load buys memory, written once for prediction and load.
//
// The pipeline decides which block is bought, transferred and freed when; a LoadBackend moves the data. The dry one
// moves none and runs over FakeUpstream, so a prediction cannot differ from its load.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <variant>
#include <vector>

#include "gpuledger/load.h"
#include "verify.h"

namespace gpuledger {

// Reads bytes of a kept tensor to where they stay.
struct ReadWork {
  const TensorInfo* tensor;
  Bytes offset, size;
  DevicePtr to;
};

// What of which weight goes through a slot in one go: elements [first, first + count).
struct WeightPart {
  size_t weight;     // index in the plan
  uint64_t ordinal;  // of the weight among those that are quantized
  uint64_t parts;    // how many parts the weight has
  uint64_t first;
  uint64_t count;
  bool last;
};

// Reads a part into a slot and quantizes it into the weight's block. With double quantization the scales are put into
// the scratch; whoever completes a weight's last part turns them into codes, and the scratch is the next weight's.
struct QuantizeWork {
  const TensorInfo* tensor;
  FloatType type;
  FourBitLayout layout;
  WeightPart part;
  DevicePtr slot, block, scratch;
};

// Reads a part into a slot again and compares it with the block. Every part of the weight has been quantized.
struct VerifyWork {
  const TensorInfo* tensor;
  FloatType type;
  FourBitLayout layout;
  WeightPart part;
  DevicePtr slot, block;
};

using LoadWork = std::variant<ReadWork, QuantizeWork, VerifyWork>;

// Work is done by any number of threads, but each piece of it is waited for in the order in which it was started.
class LoadBackend {
 public:
  virtual ~LoadBackend() = default;
  // Writes what a quantized weight's block holds besides codes and scales: padding and tables.
  virtual void PrepareBlock(const FourBitLayout& layout, DevicePtr block) = 0;
  virtual void Start(const LoadWork& work) = 0;
  // Waits for the oldest work that has not been waited for. VerifyWork gives its errors.
  virtual absl::StatusOr<ErrorSums> Finish() = 0;
  // Waits until no work runs; what has not begun never does. Nothing is started afterwards.
  virtual void Abandon() = 0;
};

// Moves nothing: the backend of a prediction.
class DryBackend final : public LoadBackend {
 public:
  void PrepareBlock(const FourBitLayout&, DevicePtr) override {}
  void Start(const LoadWork&) override {}
  absl::StatusOr<ErrorSums> Finish() override { return ErrorSums(); }
  void Abandon() override {}
};

struct PipelineResult {
  std::vector<LoadedWeight> weights;
  std::vector<WeightError> errors;  // with verify
  std::vector<Buffer> strays;
};

// Runs the whole load on `allocator`. On error everything it bought is freed.
absl::StatusOr<PipelineResult> RunPipeline(const LoadPlan& plan, CachingAllocator& allocator, LoadBackend& backend,
                                           const Progress& progress);

}  // namespace gpuledger
