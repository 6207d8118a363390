#include <filesystem>
#include <system_error>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "allowed_roots.h"
#include "file_io.h"
#include "gpuledger/model_source.h"
#include "json_text.h"
#include "shard_index.h"

namespace gpuledger {
namespace {

class ModelDirectory final : public ModelSource {
 public:
  ModelDirectory(std::string directory, std::string config, std::vector<SafetensorsFile> files)
      : directory_(std::move(directory)), config_(std::move(config)), files_(std::move(files)) {
    for (uint32_t number = 0; number < files_.size(); ++number) {
      for (TensorInfo tensor : files_[number].tensors()) {
        tensor.file = number;
        tensors_.push_back(std::move(tensor));
      }
    }
  }
  const std::string& name() const override { return directory_; }
  const std::string& directory() const override { return directory_; }
  const std::string& config() const override { return config_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const std::string& FileOf(const TensorInfo& tensor) const override {
    return tensor.file < files_.size() ? files_[tensor.file].path() : directory_;
  }

  absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const override {
    if (tensor.file >= files_.size()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} is not one of this model's", directory_, Quoted(tensor.name)));
    }
    return files_[tensor.file].Read(tensor, offset, out);
  }

 private:
  std::string directory_;
  std::string config_;
  std::vector<SafetensorsFile> files_;
  std::vector<TensorInfo> tensors_;
};

// The path of one of the directory's files, if it may be opened.
absl::StatusOr<std::string> PathOf(const std::string& directory, std::string_view name, const AllowedRoots& roots) {
  std::string path = fmt::format("{}/{}", directory, name);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    const bool link = std::filesystem::is_symlink(path, error);
    return absl::NotFoundError(path + (link ? ": a link to a file that is not there" : ": not there"));
  }
  if (!roots.Hold(path)) {
    return absl::InvalidArgumentError(
        path + ": a link that leaves the model's directory is not followed; put the file itself there");
  }
  return path;
}

absl::StatusOr<std::string> ReadConfig(const std::string& directory, const AllowedRoots& roots) {
  const absl::StatusOr<std::string> path = PathOf(directory, "config.json", roots);
  if (absl::IsNotFound(path.status())) {
    return absl::NotFoundError(
        fmt::format("{}, so {} is not a model directory", std::string(path.status().message()), directory));
  }
  if (!path.ok()) return path.status();
  absl::StatusOr<std::string> text = ReadSmallFile(*path, kMostConfigBytes);
  if (!text.ok()) return text;
  if (const auto object = ParseJsonObject(*path, *text); !object.ok()) return object.status();
  return text;
}

// What to say where neither a file nor an index of safetensors is.
absl::Status NoWeights(const std::string& directory) {
  const std::string path = fmt::format("{}/{}", directory, kModelFileName);
  std::error_code error;
  for (const std::string_view pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (std::filesystem::exists(fmt::format("{}/{}", directory, pickled), error)) {
      return absl::NotFoundError(
          fmt::format("{}: not there. {} belongs to pickled weights, which are not read: save the "
                      "model with safe_serialization=True",
                      path, pickled));
    }
  }
  return absl::NotFoundError(
      fmt::format("{}: not there, nor is {}, so {} is not a model directory", path, kShardIndexName, directory));
}

absl::StatusOr<std::vector<SafetensorsFile>> OpenSingle(const std::string& directory, const AllowedRoots& roots) {
  const absl::StatusOr<std::string> path = PathOf(directory, kModelFileName, roots);
  if (!path.ok()) return path.status();
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(*path);
  if (!file.ok()) return file.status();
  std::vector<SafetensorsFile> files;
  files.push_back(*std::move(file));
  return files;
}

// A tensor that the index does not name is read all the same: transformers loads shards whole, and the shard's own
// header is what says what it holds. What the index promises must be there, and no name may mean two tensors.
absl::Status CheckAgreement(const std::string& index_path, const ShardIndex& index,
                            const std::vector<SafetensorsFile>& files) {
  absl::flat_hash_map<std::string_view, uint32_t> found;
  for (uint32_t number = 0; number < files.size(); ++number) {
    for (const TensorInfo& tensor : files[number].tensors()) {
      const auto [it, added] = found.emplace(tensor.name, number);
      if (added) continue;
      return absl::InvalidArgumentError(fmt::format("{}: tensor {} (byte {} of the file) is also in {}",
                                                    files[number].path(), Quoted(tensor.name), tensor.begin,
                                                    index.files[it->second]));
    }
  }
  for (const ShardIndex::Entry& entry : index.entries) {
    const auto it = found.find(entry.tensor);
    if (it != found.end() && it->second == entry.file) continue;
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor {} should be in {}, but {}; the files do not belong together, fetch the model again",
                    index_path, Quoted(entry.tensor), index.files[entry.file],
                    it == found.end() ? "is in no file" : "is in " + index.files[it->second]));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SafetensorsFile>> OpenShards(const std::string& directory, const AllowedRoots& roots) {
  const absl::StatusOr<std::string> path = PathOf(directory, kShardIndexName, roots);
  if (!path.ok()) return path.status();
  const absl::StatusOr<std::string> text = ReadSmallFile(*path, kMostShardIndexBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<ShardIndex> index = ParseShardIndex(*path, *text);
  if (!index.ok()) return index.status();
  std::vector<SafetensorsFile> files;
  files.reserve(index->files.size());
  for (uint32_t number = 0; number < index->files.size(); ++number) {
    const absl::StatusOr<std::string> shard = PathOf(directory, index->files[number], roots);
    if (absl::IsNotFound(shard.status())) {
      return absl::NotFoundError(
          fmt::format("{}, but {} names it; fetch the missing file", std::string(shard.status().message()), *path));
    }
    if (!shard.ok()) return shard.status();
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(*shard);
    if (!file.ok()) return file.status();
    files.push_back(*std::move(file));
  }
  if (absl::Status status = CheckAgreement(*path, *index, files); !status.ok()) return status;
  return files;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ModelSource>> OpenModel(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(fmt::format("{}: no such directory", directory));
  }
  const absl::StatusOr<AllowedRoots> roots = AllowedRoots::Of(directory);
  if (!roots.ok()) return roots.status();
  // Weights first: what is missing here says more about the directory than a missing config.json.
  absl::StatusOr<std::vector<SafetensorsFile>> files = OpenSingle(directory, *roots);
  if (absl::IsNotFound(files.status()) && !Exists(fmt::format("{}/{}", directory, kModelFileName))) {
    files =
        Exists(fmt::format("{}/{}", directory, kShardIndexName)) ? OpenShards(directory, *roots) : NoWeights(directory);
  }
  if (!files.ok()) return files.status();
  absl::StatusOr<std::string> config = ReadConfig(directory, *roots);
  if (!config.ok()) return config.status();
  return std::make_shared<const ModelDirectory>(directory, *std::move(config), *std::move(files));
}

}  // namespace gpuledger
