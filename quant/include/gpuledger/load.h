// gpuledger/load.h - loads a checkpoint in 4 bit under the plan's cap, and proves what it left behind.
//
// The pipeline (load_pipeline.h) buys every byte in plan order from one thread: k slots and, with double quantization,
// one scratch; each quantized weight's block, filled from slots that are charged to the weight as `staging` while they
// hold part of it; slots and scratch go back; then the kept weights, read straight into their blocks. Weights pay as
// model/NAME, quantized ones in role `quantized`, kept ones in role `other`; a slot that holds nothing is load/slots,
// `staging`; the scratch is load/scratch, `scratch`.
//
// At the end the allocator settles, and four assertions are checked against the ledger (load_audit.cc):
//
//   residual    residual(w) = 0 for each weight with a closed lineage, no lineage is open, and the set of live source
//               and staging allocations is the one from before the load
//   staging     at no instant were more than `staging_budget` bytes staged
//   audit       each weight has the format that was planned, judged by its block, not by the plan
//   ownerless   no live charge without an owner, and reserved = in_use + pending + cached
//
// Load is called from one thread, which alone allocates; LoadOptions::threads others read and quantize. A LoadedModel
// may be read from any.
#pragma once

#include <absl/status/statusor.h>

#include <memory>
#include <string>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/checkpoint.h"
#include "gpuledger/plan.h"
#include "gpuledger/progress.h"

namespace gpuledger {

// One weight where it now lives.
struct LoadedWeight {
  TensorInfo tensor;  // of the source
  OwnerId owner;
  bool quantized;        // its block has layout(); otherwise it has the source's bytes
  bool expert;           // PlannedWeight::expert
  FourBitFormat format;  // if quantized
  Bytes consumed;        // source bytes that have gone into it
  Buffer block;          // null for an empty tensor

  [[nodiscard]] FourBitLayout layout() const { return FourBitLayout::Of(format, tensor.elements); }
};

// Keeps the weights and the allocator that they are charged to. The upstream and the load's sink outlive it.
class GPULEDGER_EXPORT LoadedModel {
 public:
  // `sink` is the allocator's.
  LoadedModel(std::unique_ptr<RecordSink> sink, std::unique_ptr<CachingAllocator> allocator,
              std::vector<LoadedWeight> weights, std::vector<Buffer> strays);
  LoadedModel(LoadedModel&&) noexcept = default;
  LoadedModel& operator=(LoadedModel&& other) noexcept;

  [[nodiscard]] CachingAllocator& allocator() const { return *allocator_; }
  [[nodiscard]] const std::vector<LoadedWeight>& weights() const { return weights_; }  // in the plan's order
  // Null if there is none.
  [[nodiscard]] const LoadedWeight* Find(std::string_view name) const;
  // What WriteCheckpoint takes: spans of and readers from this model, which must stay where it is meanwhile.
  // kUnimplemented unless the upstream is host-accessible.
  [[nodiscard]] absl::StatusOr<std::vector<CheckpointTensor>> CheckpointTensors() const;

 private:
  std::unique_ptr<RecordSink> sink_;  // each outlives what is below it
  std::unique_ptr<CachingAllocator> allocator_;
  std::vector<LoadedWeight> weights_;
  std::vector<Buffer> strays_;  // what a planted fault left behind
};

struct AuditEntry {
  std::string name;
  std::string planned;  // PlannedWeight::format
  std::string actual;   // the same, or a phrase for what is neither: "missing", "F32, 1,024 of 4,096 B"
};

struct WeightResidual {
  std::string name;
  Bytes bytes;
};

// How far a weight's 4-bit values are from its source (LoadOptions::verify). `expected` is what the format gives for
// normally distributed weights; what lies far above it, or has values that are not finite, is an outlier.
struct WeightError {
  std::string name;
  double max = 0;       // largest |4-bit value - source|
  double mean = 0;      // mean of it
  double rms = 0;       // of the source: the root of its mean square
  double expected = 0;  // of mean / rms
  uint64_t not_finite = 0;  // values of the source, in none of the figures above
  uint64_t destroyed = 0;   // finite in the source and not in 4 bit, because of one that is not; in none either
  bool outlier = false;

  [[nodiscard]] double relative() const { return rms > 0 ? mean / rms : 0; }
};

enum class LoadAssertion : uint8_t { kResidual, kStaging, kAudit, kOwnerless };
GPULEDGER_EXPORT std::string_view AssertionName(LoadAssertion assertion);  // "residual", ...

// One broken assertion of one weight.
struct LoadFailure {
  LoadAssertion assertion;
  std::string weight;  // empty if no weight has to do with it
  Bytes bytes;
  std::string message;  // a sentence: weight, bytes, allocations and their holders
};

struct GPULEDGER_EXPORT LoadResult {
  Bytes predicted_peak_bytes{}, peak_bytes{};           // reserved
  Bytes predicted_in_use_bytes{}, in_use_peak_bytes{};  // charged
  Bytes final_bytes{};                                  // requested, by the weights' live charges
  Bytes staging_peak_bytes{}, staging_budget_bytes{};
  Bytes residual_bytes{};
  Bytes ownerless_bytes{};
  Bytes source_bytes{};                     // read
  double seconds = 0;                       // of the pipeline, without the checks
  std::vector<AuditEntry> audit{};          // every weight, in the plan's order
  std::vector<WeightResidual> residuals{};  // every weight that was planned 4-bit, in the plan's order
  std::vector<WeightError> errors{};        // with verify: every quantized weight, in the plan's order
  std::vector<LoadFailure> failures{};      // empty: all four assertions hold
  LoadedModel model;

  [[nodiscard]] bool holds(LoadAssertion assertion) const;
  [[nodiscard]] bool passed() const { return failures.empty(); }
  // Both peaks are what was predicted, to the byte.
  [[nodiscard]] bool as_predicted() const {
    return peak_bytes == predicted_peak_bytes && in_use_peak_bytes == predicted_in_use_bytes;
  }
};

// Loads what was planned into memory of `upstream`, under the cap plan.predicted_peak_bytes. `sink` takes the ledger's
// records, null for none. An assertion that does not hold is no error: it is in the result.
// Errors: CheckFits' before a byte is read; kResourceExhausted with the allocator's report; those of the file;
// kUnimplemented for an upstream that is not host-accessible; kInvalidArgument for a fault without a weight to plant it
// in; kCancelled if `progress` said so. On error every byte is given back.
GPULEDGER_EXPORT absl::StatusOr<LoadResult> Load(const LoadPlan& plan, Upstream& upstream,
                                                 const Progress& progress = {}, RecordSink* sink = nullptr);

}  // namespace gpuledger
