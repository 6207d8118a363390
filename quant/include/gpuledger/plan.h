// gpuledger/plan.h - what a load will do with each weight, and its exact peak, from headers alone.
//
// load:  peak in_use   = max(quantized + k * slot, final)                   predicted = measured, to the byte
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

#include "gpuledger/nf4.h"
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
  uint64_t slots = 2;
  Bytes slot_size = Bytes(uint64_t{8} << 20);  // at most this; never larger than the largest weight that is quantized
  Bytes cap = Bytes::Max();                    // the user's; the load's own cap is the predicted peak
  LoadFault fault = LoadFault::kNone;
};

// A 4-bit weight is one block: packed codes, padding to 4 bytes, absmax, table.
struct Nf4Layout {
  uint64_t elements;
  Bytes absmax_at;  // packed codes start at 0
  Bytes table_at;
  Bytes size;

  static constexpr Nf4Layout Of(uint64_t elements) {
    const Bytes absmax_at = Nf4PackedBytes(elements).RoundUpTo(Bytes(sizeof(float)));
    const Bytes table_at = absmax_at + Nf4AbsmaxBytes(elements);
    return {elements, absmax_at, table_at, table_at + Bytes(16 * sizeof(float))};
  }
};

struct PlannedWeight {
  TensorInfo tensor;
  WeightAction action;
  std::string reason;  // a phrase: "linear", "embedding", "one-dimensional", ...
  Bytes final_bytes;   // what it will hold on the device: requested bytes, before rounding
  bool linear;         // a linear's weight by its name, whether it is quantized or kept
};

struct GPULEDGER_EXPORT LoadPlan {
  std::string directory;
  std::shared_ptr<const SafetensorsFile> file;  // open: the load reads what was planned
  LoadOptions options;
  std::vector<PlannedWeight> weights;  // in the order in which they are loaded: quantized first, then kept
  Bytes slot_size;
  Bytes available;               // of the device, when the plan was made
  Bytes final_bytes;             // sum over weights, requested
  Bytes staging_budget_bytes;    // slots * slot, charged
  Bytes predicted_in_use_bytes;  // peak, charged
  Bytes predicted_peak_bytes;    // reserved
  bool fits = false;             // predicted peak within options.cap and `available`

  [[nodiscard]] uint64_t quantized_count() const;
  [[nodiscard]] Bytes source_bytes() const;  // what a load reads
};

// Reads DIR/config.json and the header of DIR/model.safetensors. `available` is what the device can give. Errors: those
// of SafetensorsFile; kNotFound and kInvalidArgument with a sentence for what is missing, damaged or not a weight file
// this can quantize; kInvalidArgument for a ring that cannot be (no slot, a slot under 512 B).
GPULEDGER_EXPORT absl::StatusOr<LoadPlan> PlanLoad(const std::string& directory, const LoadOptions& options,
                                                   Bytes available = Bytes::Max());

// Ok if the plan fits. Otherwise kResourceExhausted: what is short, then the allocator's report at the point at which
// a load under the smaller limit would stop (found on the fake upstream).
GPULEDGER_EXPORT absl::Status CheckFits(const LoadPlan& plan);

}  // namespace gpuledger
