// quant/allowed_roots.h - where the files of a model directory may lie.
//
// In the directory itself, and, if it is a snapshot in the Hugging Face cache, among the blobs beside the snapshots, to
// which its files are links. A link to anywhere else could smuggle a private file into what is loaded or copied.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace gpuledger {

class AllowedRoots {
 public:
  static absl::StatusOr<AllowedRoots> Of(const std::string& directory);
  // Whether `path`, all links followed, leads to something in one of them. False too for what does not exist.
  [[nodiscard]] bool Hold(const std::string& path) const;

 private:
  std::vector<std::filesystem::path> roots_;
};

}  // namespace gpuledger
