#include "model_files.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "file_io.h"
#include "safetensors_header.h"
#include "shard_index.h"

namespace gpuledger {
namespace {

constexpr uint64_t kPieceBytes = 4u << 20;

// What has been written of how much, and whether to go on.
class Meter {
 public:
  Meter(const Progress& progress, const std::string& target, Bytes total)
      : progress_(progress), target_(target), total_(total) {}
  absl::Status Add(uint64_t bytes) {
    done_ += Bytes(bytes);
    if (!progress_ || progress_(done_, total_)) return absl::OkStatus();
    return absl::CancelledError(
        fmt::format("{}: cancelled after {} of {}; nothing is left of it", target_, ToString(done_), ToString(total_)));
  }

 private:
  const Progress& progress_;
  const std::string& target_;
  const Bytes total_;
  Bytes done_;
};

uint64_t SizeOf(const TensorSpec& spec) {
  uint64_t elements = 0;
  Bytes size;
  if (!CountElements(spec.shape, spec.dtype, &elements, &size)) Die("model files: an unchecked shape");
  return size.count();
}

// The sum of all sizes; every tensor must have one.
absl::StatusOr<uint64_t> CheckSizes(const std::string& target, const std::vector<ModelTensor>& tensors) {
  uint64_t sum = 0;
  for (const ModelTensor& tensor : tensors) {
    uint64_t elements = 0;
    Bytes size;
    if (!CountElements(tensor.spec.shape, tensor.spec.dtype, &elements, &size) ||
        __builtin_add_overflow(sum, size.count(), &sum)) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} has a size that overflows 64 bits", target, Quoted(tensor.spec.name)));
    }
  }
  return sum;
}

// Cuts the list so that no part is larger than `limit`, unless it is a single group.
std::vector<std::span<ModelTensor>> CutIntoShards(std::vector<ModelTensor>& tensors, uint64_t limit) {
  std::vector<std::span<ModelTensor>> shards;
  size_t first = 0;
  uint64_t size = 0;
  for (size_t begin = 0, end = 0; begin < tensors.size(); begin = end) {
    uint64_t group = 0;
    for (; end < tensors.size() && tensors[end].group == tensors[begin].group; ++end)
      group += SizeOf(tensors[end].spec);
    if (begin > first && group > limit - std::min(size, limit)) {
      shards.emplace_back(tensors.data() + first, begin - first);
      first = begin;
      size = 0;
    }
    size += group;
  }
  shards.emplace_back(tensors.data() + first, tensors.size() - first);
  return shards;
}

absl::Status AppendTensor(const ModelTensor& tensor, std::vector<std::byte>& piece, SafetensorsWriter& writer,
                          Meter& meter) {
  const uint64_t size = SizeOf(tensor.spec);
  std::span<const std::byte> bytes = tensor.text.empty() ? tensor.bytes : std::as_bytes(std::span(tensor.text));
  for (uint64_t offset = 0; offset < size; offset += kPieceBytes) {
    const uint64_t count = std::min(kPieceBytes, size - offset);
    std::span<const std::byte> part;
    if (tensor.read) {
      piece.resize(count);
      if (absl::Status status = tensor.read(Bytes(offset), piece); !status.ok()) return status;
      part = piece;
    } else {
      part = bytes.subspan(offset, count);
    }
    if (absl::Status status = writer.Append(part); !status.ok()) return status;
    if (absl::Status status = meter.Add(count); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> WriteFile(const std::string& path, std::span<const ModelTensor> tensors,
                                   const std::vector<std::pair<std::string, std::string>>& metadata, Meter& meter) {
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const ModelTensor& tensor : tensors) specs.push_back(tensor.spec);
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(path, specs, metadata);
  if (!writer.ok()) return writer.status();
  std::vector<std::byte> piece;
  for (const ModelTensor& tensor : tensors) {
    if (absl::Status status = AppendTensor(tensor, piece, *writer, meter); !status.ok()) return status;
  }
  if (absl::Status status = writer->Finish(); !status.ok()) return status;
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return SystemError(error.value(), path, "cannot be examined");
  return size;
}

// As transformers writes it.
absl::StatusOr<std::string> IndexText(const std::string& target, const std::map<std::string_view, std::string>& files,
                                      uint64_t total) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  auto& members =
      static_cast<nlohmann::ordered_json::object_t::Container&>(map.get_ref<nlohmann::ordered_json::object_t&>());
  for (const auto& [tensor, file] : files) members.emplace_back(std::string(tensor), file);
  std::string text =
      nlohmann::ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}}.dump(2) + "\n";
  if (text.size() > kMostShardIndexBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the index of its shards would have {} bytes, more than the {} "
                    "allowed; use larger shards",
                    target, text.size(), kMostShardIndexBytes));
  }
  return text;
}

}  // namespace

absl::StatusOr<WrittenFiles> WriteModelFiles(const std::string& directory, const std::string& target,
                                             std::vector<ModelTensor> tensors,
                                             const std::vector<std::pair<std::string, std::string>>& metadata,
                                             Bytes shard_size, const Progress& progress) {
  const absl::StatusOr<uint64_t> total = CheckSizes(target, tensors);
  if (!total.ok()) return total.status();
  if (absl::Status status = CheckSpace(directory, target, *total); !status.ok()) return status;
  const std::vector<std::span<ModelTensor>> shards = CutIntoShards(tensors, shard_size.count());
  Meter meter(progress, target, Bytes(*total));
  WrittenFiles written{Bytes(), shards.size()};
  std::map<std::string_view, std::string> files;
  for (size_t i = 0; i < shards.size(); ++i) {
    std::sort(shards[i].begin(), shards[i].end(),
              [](const ModelTensor& a, const ModelTensor& b) { return ComesBefore(a.spec, b.spec); });
    const std::string name = ShardFileName(i, shards.size());
    const absl::StatusOr<uint64_t> size = WriteFile(directory + "/" + name, shards[i], metadata, meter);
    if (!size.ok()) return size.status();
    written.bytes += Bytes(*size);
    for (const ModelTensor& tensor : shards[i]) {
      if (files.emplace(tensor.spec.name, name).second) continue;
      return absl::InvalidArgumentError(fmt::format("{}: two tensors are called {}", target, Quoted(tensor.spec.name)));
    }
  }
  if (shards.size() > 1) {
    const absl::StatusOr<std::string> text = IndexText(target, files, *total);
    if (!text.ok()) return text.status();
    absl::Status status = WriteNewFile(fmt::format("{}/{}", directory, kShardIndexName), *text);
    if (!status.ok()) return status;
  }
  return written;
}

}  // namespace gpuledger
