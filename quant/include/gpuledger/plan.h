// gpuledger/plan.h - what a load will do with each weight, and its exact peak, from headers alone.
//
// load:  peak in_use   = max(quantized + k * slot + scratch, final)         predicted = measured, to the byte
//        peak reserved = the fewest handles with which the same pipeline completes on the fake upstream: the load's cap
//                        and its prediction; predicted = measured, and one handle under the cap stops
//
// The prediction runs the load's own allocation sequence (load.cc) on a CachingAllocator over FakeUpstream.
#pragma once

#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/nf4.h"
#include "gpuledger/safetensors.h"
#include "gpuledger/types.h"

namespace gpuledger {

enum class WeightAction : uint8_t { kQuantize, kKeep };

struct PlannedWeight {
  TensorInfo tensor;
  WeightAction action;
  std::string reason;  // a phrase: "linear", "embedding", "one-dimensional", ...
  Bytes final_bytes;   // what it will hold on the device: requested bytes, before rounding
};

struct LoadOptions {
  uint64_t slots = 2;
  Bytes slot_size = Bytes(8u << 20);  // at most this; never larger than the largest weight that is quantized
  Bytes cap = Bytes::Max();           // the user's; the load's own cap is the predicted peak
};

struct LoadPlan {
  std::string directory;
  std::vector<PlannedWeight> weights;  // in the order in which they are loaded: quantized first, then kept
  uint64_t slots;
  Bytes slot_size;
  Bytes final_bytes;              // sum over weights, requested
  Bytes staging_budget_bytes;     // slots * slot, charged
  Bytes predicted_in_use_bytes;   // peak, charged
  Bytes predicted_peak_bytes;     // reserved
  bool fits;                      // predicted peak within options.cap and the device's memory
};

// Reads DIR/config.json and the header of DIR/model.safetensors. Errors: those of SafetensorsFile, and a sentence for
// what is missing.
GPULEDGER_EXPORT absl::StatusOr<LoadPlan> PlanLoad(const std::string& directory, const LoadOptions& options, Bytes device_total);

}  // namespace gpuledger
