// gpuledger/checkpoint.h - writing a 4-bit model directory that bitsandbytes and transformers load.
//
// A quantized weight P.weight becomes four tensors: P.weight (U8 [ceil(n/2), 1]), P.weight.absmax (F32 [blocks]),
// P.weight.quant_map (F32 [16]) and P.weight.quant_state.bitsandbytes__nf4 (U8, JSON); every other tensor keeps its
// bytes. The file's order is safetensors' own (alignment descending, then name), so it is the file that the safetensors
// package would write. config.json gains quantization_config; tokenizer and other small files come along.
// Source: bitsandbytes' documentation and wheel; tests load the result with the safetensors package.
//
// The data stays where it is: quantized weights are spans of live memory, kept tensors are read through a callback in
// pieces, and no more than one piece is held. One thread; no device call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/four_bit.h"
#include "gpuledger/safetensors.h"
#include "gpuledger/types.h"

namespace gpuledger {

// Fills `out` with the tensor's bytes from `offset` on. Called with rising offsets that leave nothing out.
using TensorReader = std::function<absl::Status(Bytes offset, std::span<std::byte> out)>;

// A tensor that is written as it is.
struct KeptTensor {
  std::string name;
  Dtype dtype;
  std::vector<uint64_t> shape;
  TensorReader read;
};

// A weight in 4 bit; the spans are read while the checkpoint is written and must be host memory.
struct QuantizedWeight {
  std::string name;             // ends in ".weight"
  std::vector<uint64_t> shape;  // of the source, [out, in]
  FloatType source_type;
  std::span<const uint8_t> packed;  // Nf4PackedBytes
  std::span<const float> absmax;    // Nf4Blocks
};

using CheckpointTensor = std::variant<KeptTensor, QuantizedWeight>;

struct WrittenCheckpoint {
  Bytes model_bytes;                  // of model.safetensors
  std::vector<std::string> copied;    // files that came along, relative to the directory
  std::vector<std::string> left_out;  // "NAME (why)" for each file and directory that did not
};

// Writes the directory `out`, complete or not at all: it is built under a hidden name beside it, synced, and renamed.
// `tensors` may be in any order. Of the source directory, config.json is read and files of at most 64 MiB that hold no
// weights are copied, also from direct subdirectories; symbolic links are followed if they stay in the directory or in
// the blobs of its Hugging Face cache entry.
// Errors: kAlreadyExists if `out` exists; kInvalidArgument for what the format cannot say (a weight that is not
// two-dimensional, a model already quantized); kResourceExhausted if the disk is full; whatever a reader returned.
GPULEDGER_EXPORT absl::StatusOr<WrittenCheckpoint> WriteNf4Checkpoint(const std::string& source, const std::string& out,
                                                                      std::span<const CheckpointTensor> tensors);

}  // namespace gpuledger
