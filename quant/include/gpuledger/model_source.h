// gpuledger/model_source.h - a model whose weights can be read: a directory of safetensors files, or shapes alone.
//
// plan and load know only this. A directory is opened by OpenModel (one file or shards with an index); shapes without a
// disk come from SynthModel (synth.h). Nothing is unpickled, executed or mapped; an index may name files of the
// directory only (links of a Hugging Face cache entry may lead to its blobs).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/safetensors.h"
#include "gpuledger/types.h"

namespace gpuledger {

// Immutable and thread-safe.
class GPULEDGER_EXPORT ModelSource {
 public:
  virtual ~ModelSource() = default;
  // What messages call it: the directory, or "synth:opt-350m".
  [[nodiscard]] virtual const std::string& name() const = 0;
  // The directory with the small files beside the weights; empty if there is none.
  [[nodiscard]] virtual const std::string& directory() const = 0;
  // The text of config.json: a JSON object, at most 4 MiB, nested at most 64 levels.
  [[nodiscard]] virtual const std::string& config() const = 0;
  // In the order in which they are best read: file after file, each by rising offset. Names are unique.
  [[nodiscard]] virtual const std::vector<TensorInfo>& tensors() const = 0;
  // What messages call the file that holds `tensor`.
  [[nodiscard]] virtual const std::string& FileOf(const TensorInfo&) const { return name(); }
  // Reads `out.size()` bytes of `tensor` (one of tensors()) from `offset`, relative to the tensor.
  [[nodiscard]] virtual absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const = 0;
};

// Reads config.json, and the headers of model.safetensors or, without that, of every shard that
// model.safetensors.index.json names. A tensor of a shard that the index does not name is read too, as transformers does.
// Errors: those of SafetensorsFile; kNotFound for what is missing; kInvalidArgument, naming file and entry, for an index
// or configuration that is damaged, names a file outside the directory, or does not agree with the shards.
GPULEDGER_EXPORT absl::StatusOr<std::shared_ptr<const ModelSource>> OpenModel(const std::string& directory);

}  // namespace gpuledger
