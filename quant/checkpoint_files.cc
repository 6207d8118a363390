#include "checkpoint_files.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "allowed_roots.h"
#include "file_io.h"

namespace gpuledger {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMostCompanionBytes = 64u << 20;
constexpr std::string_view kWeightSuffixes[] = {
    ".safetensors", ".bin",  ".pt",   ".pth", ".ckpt", ".h5",     ".onnx",       ".onnx_data", ".onnx.data",
    ".msgpack",     ".gguf", ".ggml", ".ot",  ".npz",  ".tflite", ".index.json", ".mlmodel",   ".engine",
};

bool IsWeightFile(const std::string& name) {
  return std::any_of(std::begin(kWeightSuffixes), std::end(kWeightSuffixes),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

absl::Status Failed(const std::error_code& error, const fs::path& path, std::string_view what) {
  return SystemError(error.value(), path.string(), what);
}

absl::StatusOr<std::vector<fs::directory_entry>> SortedEntries(const fs::path& directory) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  fs::directory_iterator it(directory, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) entries.push_back(*it);
  if (error) return Failed(error, directory, "cannot be listed");
  std::sort(entries.begin(), entries.end());
  return entries;
}

// Why a file does not come along; empty if it does.
std::string ReasonToLeaveOut(const fs::directory_entry& entry, const AllowedRoots& roots) {
  std::error_code error;
  const std::string name = entry.path().filename().string();
  if (name.starts_with('.')) return "hidden";
  if (IsWeightFile(name)) return "weights, or an index of weights";
  if (!entry.is_regular_file(error)) return "not a regular file";
  if (!roots.Hold(entry.path().string())) return "a link that leaves the model's directory";
  const uint64_t size = entry.file_size(error);
  if (error || size > kMostCompanionBytes) return "larger than 64 MiB";
  return {};
}

absl::Status CopyFile(const fs::path& from, const fs::path& to) {
  const absl::StatusOr<std::string> content = ReadSmallFile(from.string(), kMostCompanionBytes);
  if (!content.ok()) return content.status();
  return WriteNewFile(to.string(), *content);
}

// Copies the files of one directory. `inside` is its name relative to the model's directory, "" or "NAME/".
absl::Status CopyFiles(const fs::path& from, const fs::path& to, const std::string& inside, const AllowedRoots& roots,
                       WrittenCheckpoint* written) {
  const absl::StatusOr<std::vector<fs::directory_entry>> entries = SortedEntries(from);
  if (!entries.ok()) return entries.status();
  bool made = inside.empty();
  for (const fs::directory_entry& entry : *entries) {
    std::error_code error;
    const std::string name = inside + entry.path().filename().string();
    if (name == "config.json") continue;  // written anew
    if (inside.empty() && entry.is_directory(error) && !entry.is_symlink(error) && !name.starts_with('.')) {
      if (absl::Status status = CopyFiles(entry.path(), to / name, name + "/", roots, written); !status.ok()) {
        return status;
      }
      continue;
    }
    if (std::string reason = ReasonToLeaveOut(entry, roots); !reason.empty()) {
      written->left_out.push_back(fmt::format("{} ({})", name, reason));
      continue;
    }
    if (!std::exchange(made, true) && !fs::create_directory(to, error)) return Failed(error, to, "cannot be created");
    if (absl::Status status = CopyFile(entry.path(), to / entry.path().filename()); !status.ok()) return status;
    written->copied.push_back(name);
  }
  return made ? SyncDirectory(to.string()) : absl::OkStatus();
}

}  // namespace

absl::Status CopyCompanionFiles(const std::string& source, const std::string& to, WrittenCheckpoint* written) {
  const absl::StatusOr<AllowedRoots> roots = AllowedRoots::Of(source);
  if (!roots.ok()) return roots.status();
  return CopyFiles(source, to, "", *roots, written);
}

}  // namespace gpuledger
