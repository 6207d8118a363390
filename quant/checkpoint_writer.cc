#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint_files.h"
#include "file_io.h"
#include "gpuledger/checkpoint.h"
#include "model_files.h"
#include "quant_state.h"
#include "safetensors_header.h"
#include "temporary_directory.h"

namespace gpuledger {
namespace {

// Why a weight cannot be written in its layout; empty if it can.
std::string ReasonToRefuse(const QuantizedWeight& weight) {
  if (weight.own_layout) return {};
  if (!weight.name.ends_with(".weight")) {
    return "cannot be written in bitsandbytes' layout: that is for tensors named *.weight";
  }
  if (weight.shape.size() != 2) {
    return fmt::format("cannot be written in bitsandbytes' layout: it has {} dimensions, and that is for matrices",
                       weight.shape.size());
  }
  return {};
}

absl::Status AddQuantized(const QuantizedWeight& weight, uint64_t group, std::vector<ModelTensor>& tensors) {
  const auto bad = [&](std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("weight {} {}", Quoted(weight.name), what));
  };
  if (const std::string reason = ReasonToRefuse(weight); !reason.empty()) return bad(reason);
  uint64_t elements = 0;
  Bytes size;
  if (!IsBlockSize(weight.format.block)) return bad(fmt::format("has blocks of {} elements", weight.format.block));
  if (!CountElements(weight.shape, Dtype::kF32, &elements, &size)) return bad("has a size that overflows 64 bits");
  const FourBitLayout at = FourBitLayout::Of(weight.format, elements);
  if (Bytes(weight.block.size()) != at.size) {
    return bad(fmt::format("has shape [{}], which as {} needs a block of {} bytes, but was given {}",
                           fmt::join(weight.shape, ", "), ToString(weight.format), at.size.count(),
                           weight.block.size()));
  }
  const auto add = [&](std::string_view suffix, Dtype dtype, std::vector<uint64_t> shape, Bytes from, uint64_t bytes) {
    tensors.push_back({.spec = {weight.name + std::string(suffix), dtype, std::move(shape)},
                       .bytes = weight.block.subspan(from.count(), bytes),
                       .group = group});
  };
  const uint64_t packed = PackedBytes(elements).count();
  add("", Dtype::kU8, {packed, 1}, Bytes(), packed);
  if (weight.format.double_quant) {
    add(".absmax", Dtype::kU8, {at.blocks}, at.absmax_at, at.blocks);
    add(".nested_absmax", Dtype::kF32, {at.nested_blocks}, at.nested_absmax_at, at.nested_blocks * sizeof(float));
    add(".nested_quant_map", Dtype::kF32, {256}, at.nested_table_at, 256 * sizeof(float));
  } else {
    add(".absmax", Dtype::kF32, {at.blocks}, at.absmax_at, at.blocks * sizeof(float));
  }
  add(".quant_map", Dtype::kF32, {16}, at.table_at, 16 * sizeof(float));

  QuantState state{weight.format, weight.source_type, weight.shape};
  if (weight.format.double_quant) {
    std::memcpy(&state.offset, weight.block.data() + at.offset_at.count(), sizeof(state.offset));
  }
  std::string text = QuantStateText(state);
  const uint64_t length = text.size();
  tensors.push_back({.spec = {fmt::format("{}{}{}", weight.name, weight.own_layout ? kOwnState : kBitsandbytesState,
                                          QuantTypeName(weight.format.type)),
                              Dtype::kU8,
                              {length}},
                     .text = std::move(text),
                     .group = group});
  return absl::OkStatus();
}

// `own` counts the weights in our own layout.
absl::StatusOr<std::vector<ModelTensor>> MakeTensors(std::span<const CheckpointTensor> tensors, uint64_t* own) {
  std::vector<ModelTensor> all;
  uint64_t group = 0;
  for (const CheckpointTensor& tensor : tensors) {
    ++group;
    if (const auto* weight = std::get_if<QuantizedWeight>(&tensor)) {
      if (absl::Status status = AddQuantized(*weight, group, all); !status.ok()) return status;
      *own += weight->own_layout ? 1 : 0;
    } else {
      const auto& kept = std::get<KeptTensor>(tensor);
      *own += kept.name.find(kOwnState) != std::string::npos ? 1 : 0;
      all.push_back({.spec = {kept.name, kept.dtype, kept.shape}, .read = kept.read, .group = group});
    }
  }
  return all;
}

}  // namespace

absl::StatusOr<WrittenCheckpoint> WriteCheckpoint(const ModelSource& source, const std::string& out,
                                                  std::span<const CheckpointTensor> tensors, const Progress& progress,
                                                  const CheckpointOptions& options) {
  absl::StatusOr<TemporaryDirectory> directory = TemporaryDirectory::For(out, "the checkpoint");
  if (!directory.ok()) return directory.status();
  const absl::StatusOr<std::string> config = MakeCheckpointConfig(source, tensors);
  if (!config.ok()) return config.status();
  WrittenCheckpoint written;
  absl::StatusOr<std::vector<ModelTensor>> all = MakeTensors(tensors, &written.own_layout);
  if (!all.ok()) return all.status();

  std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}};
  if (written.own_layout > 0) metadata.emplace_back("gpuledger_four_bit", "1");
  const absl::StatusOr<WrittenFiles> files =
      WriteModelFiles(directory->path(), out, *std::move(all), metadata, options.shard_size, progress);
  if (!files.ok()) return files.status();
  written.model_bytes = files->bytes;
  written.files = files->count;
  if (!source.directory().empty()) {
    absl::Status status = CopyCompanionFiles(source.directory(), directory->path(), &written);
    if (!status.ok()) return status;
  }
  // Last, because a directory without it is no checkpoint, even if the writer is killed here.
  if (absl::Status status = WriteNewFile(directory->path() + "/config.json", *config); !status.ok()) return status;
  if (absl::Status status = directory->Publish(); !status.ok()) return status;
  return written;
}

}  // namespace gpuledger
