// quant/quant_state.h - what a checkpoint says of its 4-bit weights: read, checked against the tensors beside, written.
//
// NAME.quant_state.bitsandbytes__nf4 (or __fp4; gpuledger__nf4, gpuledger__fp4 for our own layout) is a U8 tensor of
// JSON: {"quant_type", "blocksize", "dtype", "shape"}, with double quantization also {"nested_blocksize",
// "nested_dtype", "nested_offset"}. Source: bitsandbytes' wheel (0.50.2); CHECKPOINT.md has the whole format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/four_bit.h"
#include "gpuledger/model_source.h"

namespace gpuledger {

inline constexpr std::string_view kBitsandbytesState = ".quant_state.bitsandbytes__";  // then the quant type
inline constexpr std::string_view kOwnState = ".quant_state.gpuledger__";

// "float32", "float16", "bfloat16": PyTorch's name.
std::string_view TorchName(FloatType type);

struct QuantState {
  FourBitFormat format;
  FloatType source_type;
  std::vector<uint64_t> shape;
  float offset = 0;  // with double quantization
};

// With Python's separators and numbers, in bitsandbytes' order of keys.
std::string QuantStateText(const QuantState& state);

// `path` and `offset` are where the text is, `tensor` what it is of; errors name all three.
absl::StatusOr<QuantState> ParseQuantState(const std::string& path, uint64_t offset, std::string_view tensor,
                                           std::string_view text);

// A weight that is in 4 bit already. The pointers are into tensors() of its source.
struct StoredWeight {
  std::string name;
  FourBitFormat format;
  FloatType source_type;
  std::vector<uint64_t> shape;
  uint64_t elements;
  bool own_layout;
  float offset;              // with double quantization
  const TensorInfo* packed;  // NAME
  const TensorInfo* absmax;
  const TensorInfo* table;
  const TensorInfo* nested_absmax;  // null without double quantization
  const TensorInfo* nested_table;   // null without double quantization
  const TensorInfo* state;
};

// All of them, in the order of their states in source.tensors(); each part has the dtype and size that its format
// needs, and the tables are ours. Reads states and tables alone. Errors: kInvalidArgument that names file, tensor and
// byte; also for a model that is quantized by another method, or whose configuration says 4 bit while no tensor is.
absl::StatusOr<std::vector<StoredWeight>> FindStoredWeights(const ModelSource& source);

}  // namespace gpuledger
