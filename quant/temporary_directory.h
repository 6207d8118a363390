// quant/temporary_directory.h - a directory that appears under its name complete, or not at all.
#pragma once

#include <string>
#include <utility>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace gpuledger {

// A new directory under a hidden name beside `target`, removed with its content unless it was published.
class TemporaryDirectory {
 public:
  // `what` is what errors call it: "the checkpoint". Errors: kAlreadyExists if `target` exists; the system's.
  static absl::StatusOr<TemporaryDirectory> For(const std::string& target, std::string_view what);
  TemporaryDirectory(TemporaryDirectory&& other) noexcept
      : path_(std::exchange(other.path_, {})), target_(std::move(other.target_)) {}
  TemporaryDirectory& operator=(TemporaryDirectory&&) = delete;
  ~TemporaryDirectory();

  const std::string& path() const { return path_; }
  // Syncs it and gives it its name. kAlreadyExists, and nothing done, if that has come to exist meanwhile.
  absl::Status Publish();

 private:
  TemporaryDirectory(std::string path, std::string target) : path_(std::move(path)), target_(std::move(target)) {}
  std::string path_;
  std::string target_;
};

}  // namespace gpuledger
