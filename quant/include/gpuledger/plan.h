// gpuledger/plan.h - what a load will do with each weight, and its exact peak, from headers alone.
//
// load:  peak in_use   = max(quantized + k * slot + scratch, final)         predicted = measured, to the byte
//        peak reserved = the fewest handles with which the same pipeline completes on the fake upstream: the load's cap
//                        and its prediction; predicted = measured, and one handle under the cap stops
//
// The prediction is a run of the load's own pipeline (load_pipeline.h) over FakeUpstream: the same allocations in the
// same order, without data. Reads headers only. Everything here is a value; thread-safe. Read next: load.h.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gpuledger/codec.h"
#include "gpuledger/four_bit.h"
#include "gpuledger/model_source.h"
#include "gpuledger/progress.h"
#include "gpuledger/safetensors.h"
#include "gpuledger/types.h"

namespace gpuledger {

enum class WeightAction : uint8_t { kQuantize, kKeep };
GPULEDGER_EXPORT std::string_view ActionName(WeightAction action);  // "quantize", "keep"

// A planted fault: it makes a load break one of its four assertions, to show that the assertion notices. Each is
// planted in the last weight that is quantized. For tests; a load with a fault has no cap.
enum class LoadFault : uint8_t {
  kNone,
  kResidual,   // the weight's last slot is not given back
  kStaging,    // the weight is staged in one slot more than the ring has
  kAudit,      // the weight is loaded as it is in the file
  kOwnerless,  // the weight's block is bought outside any scope
};
// "residual", "staging", "audit", "ownerless"; false, and `fault` untouched, for any other name.
GPULEDGER_EXPORT bool ParseLoadFault(std::string_view name, LoadFault* fault);

struct LoadOptions {
  FourBitFormat format;
  Dialect dialect = Dialect::kCpu;
  uint64_t slots = 2;
  Bytes slot_size = Bytes(uint64_t{8} << 20);  // at most this; never larger than the largest weight that is quantized
  uint64_t threads = 0;                        // that read and quantize; 0: as many as there are slots and cores
  std::vector<std::string> skip, only;         // globs over tensor names (owner.h): stay in 16 bit; alone become 4-bit
  bool verify = false;                         // read each weight again and compare it with its 4-bit values
  Bytes cap = Bytes::Max();                    // the user's; the load's own cap is the predicted peak
  LoadFault fault = LoadFault::kNone;
};

struct PlannedWeight {
  TensorInfo tensor;
  WeightAction action;
  std::string reason;  // a phrase: "linear", "embedding", "one-dimensional", ...
  std::string format;  // what it will be: "nf4", or the dtype in the file, or "nf4, as stored"
  Bytes final_bytes;   // what it will hold on the device: requested bytes, before rounding
  bool linear;         // a linear's weight by its name, whether it is quantized or kept
  bool expert;         // of a mixture: no layout exists in which transformers loads it in 4 bit
};

struct GPULEDGER_EXPORT LoadPlan {
  std::shared_ptr<const ModelSource> source;  // open: the load reads what was planned
  LoadOptions options;
  std::vector<PlannedWeight> weights;  // in the order in which they are loaded: quantized first, then kept
  bool stored_4bit = false;            // the model is in 4 bit already, and nothing is quantized again
  Bytes slot_size;
  Bytes scratch_size;            // scales of the largest weight, with double quantization; 0 without
  Bytes available;               // of the device, when the plan was made
  Bytes final_bytes;             // sum over weights, requested
  Bytes staging_budget_bytes;    // slots * slot, charged
  Bytes predicted_in_use_bytes;  // peak, charged
  Bytes predicted_peak_bytes;    // reserved
  bool fits = false;             // predicted peak within options.cap and `available`

  [[nodiscard]] uint64_t quantized_count() const;
  [[nodiscard]] Bytes source_bytes() const;  // what a load reads, once
};

// Plans the load of a model that is open. `available` is what the device can give. Errors: kInvalidArgument with a
// sentence for a configuration or a stored 4-bit weight that is damaged, for a glob that matches nothing, and for a ring
// that cannot be (no slot, a slot that does not hold one block of float32); kCancelled. `progress` is called with the
// position in one of the dry runs, of which there are a few.
GPULEDGER_EXPORT absl::StatusOr<LoadPlan> PlanLoad(std::shared_ptr<const ModelSource> source, const LoadOptions& options,
                                                   Bytes available = Bytes::Max(), const Progress& progress = {});

// Ok if the plan fits. Otherwise kResourceExhausted: what is short, then the allocator's report at the point at which
// a load under the smaller limit would stop (found on the fake upstream).
GPULEDGER_EXPORT absl::Status CheckFits(const LoadPlan& plan);

}  // namespace gpuledger
