#include "allowed_roots.h"

#include <algorithm>
#include <system_error>

#include "file_io.h"

namespace gpuledger {

namespace fs = std::filesystem;

absl::StatusOr<AllowedRoots> AllowedRoots::Of(const std::string& directory) {
  std::error_code error;
  const fs::path root = fs::canonical(directory, error);
  if (error) return SystemError(error.value(), directory, "cannot be resolved");
  AllowedRoots roots;
  roots.roots_.push_back(root);
  const fs::path parent = root.parent_path();
  if (parent.filename() == "snapshots") roots.roots_.push_back(parent.parent_path() / "blobs");
  return roots;
}

bool AllowedRoots::Hold(const std::string& path) const {
  std::error_code error;
  const fs::path target = fs::canonical(path, error);
  return !error && std::any_of(roots_.begin(), roots_.end(), [&](const fs::path& root) {
    return std::mismatch(root.begin(), root.end(), target.begin(), target.end()).first == root.end();
  });
}

}  // namespace gpuledger
