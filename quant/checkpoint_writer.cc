#include <algorithm>
#include <filesystem>
#include <system_error>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint_files.h"
#include "file_io.h"
#include "gpuledger/checkpoint.h"
#include "safetensors_header.h"
#include "temporary_directory.h"

namespace gpuledger {
namespace {

constexpr uint64_t kPieceBytes = 4u << 20;

// One tensor of the file and where its bytes are: in memory, in `text`, or behind a reader.
struct Entry {
  TensorSpec spec;
  std::span<const std::byte> bytes;
  std::string text;
  const TensorReader* read = nullptr;
};

// With Python's separators, as bitsandbytes writes it; nothing in it needs escaping.
std::string QuantState(const QuantizedWeight& weight) {
  return fmt::format(R"({{"quant_type": "nf4", "blocksize": {}, "dtype": "{}", "shape": [{}]}})", kNf4BlockSize,
                     TorchName(weight.source_type), fmt::join(weight.shape, ", "));
}

absl::Status AddQuantized(const QuantizedWeight& weight, std::vector<Entry>& entries) {
  const auto bad = [&](std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("weight {} {}", Quoted(weight.name), what));
  };
  if (!weight.name.ends_with(".weight")) {
    return bad("cannot be written in 4 bit: bitsandbytes loads only tensors named *.weight; keep it in 16 bit");
  }
  if (weight.shape.size() != 2) {
    return bad(fmt::format("cannot be written in 4 bit: it has {} dimensions, and bitsandbytes' format is for "
                           "matrices; keep it in 16 bit", weight.shape.size()));
  }
  uint64_t elements = 0;
  Bytes size;
  if (!CountElements(weight.shape, Dtype::kF32, &elements, &size)) return bad("has a size that overflows 64 bits");
  const uint64_t packed = Nf4PackedBytes(elements).count();
  const uint64_t blocks = Nf4Blocks(elements);
  if (weight.packed.size() != packed || weight.absmax.size() != blocks) {
    return bad(fmt::format("has shape [{}] and needs {} packed bytes and {} absmax values, but was given {} and {}",
                           fmt::join(weight.shape, ", "), packed, blocks, weight.packed.size(), weight.absmax.size()));
  }
  std::string state = QuantState(weight);
  const uint64_t state_size = state.size();
  entries.push_back({{weight.name, Dtype::kU8, {packed, 1}}, std::as_bytes(weight.packed), {}});
  entries.push_back({{weight.name + ".absmax", Dtype::kF32, {blocks}}, std::as_bytes(weight.absmax), {}});
  entries.push_back({{weight.name + ".quant_map", Dtype::kF32, {16}}, std::as_bytes(std::span(Nf4Table())), {}});
  entries.push_back(
      {{weight.name + ".quant_state.bitsandbytes__nf4", Dtype::kU8, {state_size}}, {}, std::move(state)});
  return absl::OkStatus();
}

// In the order of the safetensors package, whose readers want every tensor aligned to its type.
absl::StatusOr<std::vector<Entry>> MakeEntries(std::span<const CheckpointTensor> tensors) {
  std::vector<Entry> entries;
  for (const CheckpointTensor& tensor : tensors) {
    if (const auto* weight = std::get_if<QuantizedWeight>(&tensor)) {
      if (absl::Status status = AddQuantized(*weight, entries); !status.ok()) return status;
    } else {
      const auto& kept = std::get<KeptTensor>(tensor);
      entries.push_back({{kept.name, kept.dtype, kept.shape}, {}, {}, &kept.read});
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(b.spec.dtype, a.spec.name) < std::tie(a.spec.dtype, b.spec.name);
  });
  return entries;
}

absl::Status AppendEntry(const Entry& entry, std::vector<std::byte>& piece, SafetensorsWriter& writer) {
  if (entry.read == nullptr) {
    return writer.Append(entry.text.empty() ? entry.bytes : std::as_bytes(std::span(entry.text)));
  }
  uint64_t elements = 0;
  Bytes size;
  if (!CountElements(entry.spec.shape, entry.spec.dtype, &elements, &size)) Die("checkpoint: an unchecked shape");
  for (Bytes offset; offset < size; offset += Bytes(piece.size())) {
    piece.resize(std::min(kPieceBytes, (size - offset).count()));
    if (absl::Status status = (*entry.read)(offset, piece); !status.ok()) return status;
    if (absl::Status status = writer.Append(piece); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WriteModel(const std::string& path, const std::vector<Entry>& entries) {
  std::vector<TensorSpec> specs;
  specs.reserve(entries.size());
  for (const Entry& entry : entries) specs.push_back(entry.spec);
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(path, specs, {{"format", "pt"}});
  if (!writer.ok()) return writer.status();
  std::vector<std::byte> piece;
  for (const Entry& entry : entries) {
    if (absl::Status status = AppendEntry(entry, piece, *writer); !status.ok()) return status;
  }
  return writer->Finish();
}

}  // namespace

absl::StatusOr<WrittenCheckpoint> WriteNf4Checkpoint(const std::string& source, const std::string& out,
                                                     std::span<const CheckpointTensor> tensors) {
  absl::StatusOr<TemporaryDirectory> directory = TemporaryDirectory::For(out, "the checkpoint");
  if (!directory.ok()) return directory.status();
  const absl::StatusOr<std::vector<Entry>> entries = MakeEntries(tensors);
  if (!entries.ok()) return entries.status();
  const absl::StatusOr<std::string> config = MakeCheckpointConfig(source, tensors);
  if (!config.ok()) return config.status();

  WrittenCheckpoint written;
  const std::string model = directory->path() + "/model.safetensors";
  if (absl::Status status = WriteModel(model, *entries); !status.ok()) return status;
  if (absl::Status status = CopyCompanionFiles(source, directory->path(), &written); !status.ok()) return status;
  // Last, because a directory without it is no checkpoint, even if the writer is killed here.
  if (absl::Status status = WriteNewFile(directory->path() + "/config.json", *config); !status.ok()) return status;
  std::error_code error;
  written.model_bytes = Bytes(std::filesystem::file_size(model, error));
  if (absl::Status status = directory->Publish(); !status.ok()) return status;
  return written;
}

}  // namespace gpuledger
