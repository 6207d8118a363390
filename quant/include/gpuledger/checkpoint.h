// gpuledger/checkpoint.h - writing a 4-bit model directory that bitsandbytes and transformers load.
//
// A quantized weight P.weight becomes the tensors that bitsandbytes makes of it: P.weight (U8 [ceil(n/2), 1]), .absmax,
// .quant_map, .quant_state.bitsandbytes__nf4 (U8, JSON), with double quantization .nested_absmax and .nested_quant_map;
// every other tensor keeps its bytes. Weights for which no layout that transformers loads exists (experts) have one of
// our own. quant/CHECKPOINT.md describes both. A file's order is safetensors' own (dtype descending, then name).
// config.json gains quantization_config; tokenizer and other small files come along.
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
#include "gpuledger/model_source.h"
#include "gpuledger/progress.h"
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

// A weight in 4 bit; the block is read while the checkpoint is written and must be host memory.
struct QuantizedWeight {
  std::string name;             // ends in ".weight", unless in our own layout
  std::vector<uint64_t> shape;  // of the source: [out, in], unless in our own layout
  FloatType source_type;
  FourBitFormat format;
  bool own_layout = false;           // for what transformers would not load as bitsandbytes' layout: experts
  std::span<const std::byte> block;  // as FourBitLayout::Of(format, elements) says
};

using CheckpointTensor = std::variant<KeptTensor, QuantizedWeight>;

struct WrittenCheckpoint {
  Bytes model_bytes;                  // of model.safetensors, or of all shards
  uint64_t files = 0;                 // of weights: 1, or the number of shards
  uint64_t own_layout = 0;            // weights that only gpuledger loads
  std::vector<std::string> copied;    // files that came along, relative to the directory
  std::vector<std::string> left_out;  // "NAME (why)" for each file and directory that did not
};

struct CheckpointOptions {
  Bytes shard_size = Bytes(uint64_t{5} << 30);  // of a file's tensors: at most this, but at least one weight
};

// Writes the directory `out`, complete or not at all: it is built under a hidden name beside it, synced, and renamed.
// `tensors` may be in any order; with several shards they are filled in that order. Of the source's directory, if it
// has one, files of at most 64 MiB that hold no weights are copied, also from direct subdirectories; symbolic links are
// followed if they stay in the directory or in the blobs of its Hugging Face cache entry.
// Errors: kAlreadyExists if `out` exists; kInvalidArgument for what the format cannot say; kResourceExhausted if the
// disk is full, or will be; kCancelled if `progress` says stop; whatever a reader returned. Then nothing is left.
GPULEDGER_EXPORT absl::StatusOr<WrittenCheckpoint> WriteCheckpoint(const ModelSource& source, const std::string& out,
                                                                   std::span<const CheckpointTensor> tensors,
                                                                   const Progress& progress = {},
                                                                   const CheckpointOptions& options = {});

}  // namespace gpuledger
