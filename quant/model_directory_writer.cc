#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <future>
#include <nlohmann/json.hpp>
#include <utility>

#include "file_io.h"
#include "gpuledger/synth.h"
#include "safetensors_header.h"
#include "shard_index.h"
#include "temporary_directory.h"

namespace gpuledger {
namespace {

constexpr uint64_t kPieceBytes = 8u << 20;

struct Shard {
  std::string file;
  std::vector<const TensorInfo*> tensors;
  Bytes size;
};

// In the model's order, as transformers cuts it; within a file in the file's.
std::vector<Shard> CutIntoShards(const ModelSource& source, Bytes shard_size) {
  std::vector<Shard> shards(1);
  for (const TensorInfo& tensor : source.tensors()) {
    const Shard& last = shards.back();
    if (!last.tensors.empty() && (last.size > shard_size || tensor.size > shard_size - last.size)) {
      shards.emplace_back();
    }
    shards.back().tensors.push_back(&tensor);
    shards.back().size += tensor.size;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = ShardFileName(i, shards.size());
    std::sort(shards[i].tensors.begin(), shards[i].tensors.end(),
              [](const TensorInfo* a, const TensorInfo* b) { return ComesBefore(*a, *b); });
  }
  return shards;
}

Bytes TotalSize(const std::vector<Shard>& shards) {
  Bytes total;
  for (const Shard& shard : shards) total += shard.size;
  return total;
}

// What a full disk would end after minutes is refused at once. Headers, index and the file system's own tables are
// estimated generously.
absl::Status CheckSpace(const std::string& out, const ModelSource& source, Bytes total) {
  struct statvfs info;
  if (::statvfs(DirectoryOf(NormalPath(out)).c_str(), &info) != 0) return absl::OkStatus();  // writing will tell
  Bytes needed = total + Bytes(source.config().size()) + total / 1000u;
  for (const TensorInfo& tensor : source.tensors()) needed += Bytes(2 * tensor.name.size() + 256);
  const Bytes available = Bytes(uint64_t{info.f_bavail}) * uint64_t{info.f_frsize};
  if (needed <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("{}: {} takes {} on disk, and {} are free; free {} or name a directory on another disk", out,
                  source.name(), ToString(needed), ToString(available), ToString(needed - available)));
}

// Hands out the bytes of a shard's tensors, one behind the other.
class ShardReader {
 public:
  ShardReader(const ModelSource& source, const std::vector<const TensorInfo*>& tensors)
      : source_(source), tensors_(tensors) {}

  // Fills `out`, less at the end of the last tensor; returns how much.
  absl::StatusOr<size_t> Fill(std::span<std::byte> out) {
    size_t filled = 0;
    while (filled < out.size() && next_ < tensors_.size()) {
      const TensorInfo& tensor = *tensors_[next_];
      const uint64_t left = (tensor.size - offset_).count();
      const size_t size = std::min<uint64_t>(out.size() - filled, left);
      if (absl::Status status = source_.Read(tensor, offset_, out.subspan(filled, size)); !status.ok()) return status;
      filled += size;
      offset_ += Bytes(size);
      if (size == left) {
        ++next_;
        offset_ = Bytes();
      }
    }
    return filled;
  }

 private:
  const ModelSource& source_;
  const std::vector<const TensorInfo*>& tensors_;
  size_t next_ = 0;
  Bytes offset_;
};

class DirectoryWriter {
 public:
  DirectoryWriter(const ModelSource& source, const std::string& out, const Progress& progress, Bytes total)
      : source_(source),
        out_(out),
        progress_(progress),
        total_(total),
        pieces_{Piece(kPieceBytes), Piece(kPieceBytes)} {}

  absl::Status Report() const {
    if (!progress_ || progress_(done_, total_)) return absl::OkStatus();
    return absl::CancelledError(out_ + ": stopped, and nothing is left of it");
  }

  // While one piece is written, another thread makes the next.
  absl::Status WriteShard(const std::string& directory, const Shard& shard) {
    std::vector<TensorSpec> specs;
    specs.reserve(shard.tensors.size());
    for (const TensorInfo* tensor : shard.tensors) specs.push_back({tensor->name, tensor->dtype, tensor->shape});
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(directory + "/" + shard.file, specs, {{"format", "pt"}});
    if (!writer.ok()) return writer.status();
    ShardReader reader(source_, shard.tensors);
    const auto start = [&](size_t piece) {
      return std::async(std::launch::async, [&reader, &buffer = pieces_[piece]] { return reader.Fill(buffer); });
    };
    std::future<absl::StatusOr<size_t>> next = start(0);  // waits for its thread when it dies
    for (size_t piece = 0;; piece ^= 1) {
      const absl::StatusOr<size_t> size = next.get();
      if (!size.ok()) return size.status();
      if (*size == 0) return writer->Finish();
      next = start(piece ^ 1);
      if (absl::Status status = writer->Append(std::span(pieces_[piece]).first(*size)); !status.ok()) return status;
      done_ += Bytes(*size);
      if (absl::Status status = Report(); !status.ok()) return status;
    }
  }

 private:
  using Piece = std::vector<std::byte>;
  const ModelSource& source_;
  const std::string& out_;
  const Progress& progress_;
  const Bytes total_;
  Bytes done_;
  std::array<Piece, 2> pieces_;
};

absl::Status WriteIndex(const std::string& path, const std::vector<Shard>& shards, Bytes total) {
  uint64_t parameters = 0;
  nlohmann::json files = nlohmann::json::object();  // sorted by name, as transformers does
  for (const Shard& shard : shards) {
    for (const TensorInfo* tensor : shard.tensors) {
      parameters += tensor->elements;
      files[tensor->name] = shard.file;
    }
  }
  const nlohmann::json index = {{"metadata", {{"total_parameters", parameters}, {"total_size", total.count()}}},
                                {"weight_map", std::move(files)}};
  return WriteNewFile(path, index.dump(2) + "\n");
}

}  // namespace

absl::Status WriteModelDirectory(const ModelSource& source, const std::string& out, const WriteModelOptions& options,
                                 const Progress& progress) {
  const std::vector<Shard> shards = CutIntoShards(source, options.shard_size);
  const Bytes total = TotalSize(shards);
  absl::StatusOr<TemporaryDirectory> directory = TemporaryDirectory::For(out, "the model");
  if (!directory.ok()) return directory.status();
  if (absl::Status status = CheckSpace(out, source, total); !status.ok()) return status;

  DirectoryWriter writer(source, out, progress, total);
  if (absl::Status status = writer.Report(); !status.ok()) return status;
  for (const Shard& shard : shards) {
    if (absl::Status status = writer.WriteShard(directory->path(), shard); !status.ok()) return status;
  }
  if (shards.size() > 1) {
    const std::string index = fmt::format("{}/{}", directory->path(), kShardIndexName);
    if (absl::Status status = WriteIndex(index, shards, total); !status.ok()) return status;
  }
  // Last, because a directory without it is no model, even if the writer is killed here.
  absl::Status status = WriteNewFile(directory->path() + "/config.json", source.config());
  return status.ok() ? directory->Publish() : status;
}

}  // namespace gpuledger
