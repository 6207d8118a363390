// The JSON of a quant_state: refused, or the same again after it is written.
#include "fuzz_files.h"
#include "quant_state.h"

using namespace gpuledger;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::StatusOr<QuantState> state = ParseQuantState("file", 8, "w", TextOf(data, size));
  if (!state.ok()) {
    Ensure(state.status().code() == absl::StatusCode::kInvalidArgument && state.status().message().size() < 2000);
    return 0;
  }
  Ensure(IsBlockSize(state->format.block));
  const absl::StatusOr<QuantState> again = ParseQuantState("file", 8, "w", QuantStateText(*state));
  Ensure(again.ok() && again->format == state->format && again->shape == state->shape);
  Ensure(again->source_type == state->source_type && again->offset == state->offset);
  return 0;
}
