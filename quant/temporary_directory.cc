#include "temporary_directory.h"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>

#include "file_io.h"

namespace gpuledger {

absl::StatusOr<TemporaryDirectory> TemporaryDirectory::For(const std::string& target, std::string_view what) {
  std::string normal = NormalPath(target);
  if (Exists(normal)) {
    return absl::AlreadyExistsError(target + ": already exists, and is not replaced; name a new directory");
  }
  std::string path = TemporaryNameFor(normal);
  if (::mkdir(path.c_str(), 0777) != 0) {
    return SystemError(errno, DirectoryOf(normal), fmt::format("{} cannot be created here", what));
  }
  return TemporaryDirectory(std::move(path), std::move(normal));
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

absl::Status TemporaryDirectory::Publish() {
  absl::Status status = SyncDirectory(path_);
  if (status.ok()) status = PublishAs(path_, target_);
  if (status.ok()) path_.clear();
  return status;
}

}  // namespace gpuledger
