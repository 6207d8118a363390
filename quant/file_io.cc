#include "file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace gpuledger {
namespace {

constexpr size_t kQuotedCharacters = 200;
constexpr size_t kMostPerCall = size_t{1} << 30;  // Linux moves a little less than 2^31 bytes in one call

template <class Call>
auto Retry(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

}  // namespace

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = other.Release();
  }
  return *this;
}

int FileDescriptor::Close() {
  const int fd = Release();
  if (fd < 0) return 0;
  // On Linux the descriptor is gone even after EINTR.
  return ::close(fd) == 0 || errno == EINTR ? 0 : errno;
}

int FileDescriptor::Release() { return std::exchange(fd_, -1); }

absl::Status SystemError(int error, std::string_view path, std::string_view what) {
  const absl::Status status = absl::ErrnoToStatus(error, fmt::format("{}: {}", path, what));
  // It is no lack of memory.
  if (error == EMFILE || error == ENFILE) {
    return absl::InternalError(std::string(status.message()) + "; raise the limit of open files (ulimit -n)");
  }
  // A file size limit is, to the user, a full disk.
  return error == EFBIG ? absl::ResourceExhaustedError(std::string(status.message())) : status;
}

std::string Quoted(std::string_view text) {
  const bool cut = text.size() > kQuotedCharacters;
  const nlohmann::json value(std::string(text.substr(0, kQuotedCharacters)));
  return value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace) + (cut ? "..." : "");
}

std::string NormalPath(const std::string& path) {
  std::filesystem::path normal = std::filesystem::path(path).lexically_normal();
  if (!normal.has_filename() && normal.has_relative_path()) normal = normal.parent_path();
  return normal.string();
}

std::string DirectoryOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

bool Exists(const std::string& path) {
  struct stat info;
  return ::lstat(path.c_str(), &info) == 0;
}

std::string TemporaryNameFor(const std::string& path) {
  static std::atomic<uint64_t> counter = 0;
  const std::filesystem::path target(path);
  // The time keeps a name apart from that of a killed process with the same id.
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  const std::string name =
      fmt::format(".{:.100}.partial-{}-{:x}-{}", target.filename().string(), ::getpid(), now, ++counter);
  return (target.parent_path() / name).string();
}

absl::StatusOr<FileState> StateOf(const FileDescriptor& file, const std::string& path) {
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return SystemError(errno, path, "cannot be examined");
  return FileState{static_cast<uint64_t>(info.st_size), info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

absl::StatusOr<FileDescriptor> OpenForReading(const std::string& path, FileState* state) {
  FileDescriptor file(Retry([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  if (file.get() < 0) return SystemError(errno, path, "cannot be opened");
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return SystemError(errno, path, "cannot be examined");
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(path + ": is not a regular file");
  *state = {static_cast<uint64_t>(info.st_size), info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
  return file;
}

absl::StatusOr<FileDescriptor> CreateNew(const std::string& path) {
  FileDescriptor file(Retry([&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
  if (file.get() < 0) return SystemError(errno, path, "cannot be created");
  return file;
}

absl::StatusOr<uint64_t> ReadAt(const FileDescriptor& file, const std::string& path, uint64_t offset,
                                std::span<std::byte> out) {
  uint64_t done = 0;
  while (done < out.size()) {
    const size_t wanted = std::min<uint64_t>(out.size() - done, kMostPerCall);
    const ssize_t got =
        Retry([&] { return ::pread(file.get(), out.data() + done, wanted, static_cast<off_t>(offset + done)); });
    if (got < 0) return SystemError(errno, path, fmt::format("cannot read {} bytes at {}", wanted, offset + done));
    if (got == 0) break;
    done += static_cast<uint64_t>(got);
  }
  return done;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, uint64_t limit) {
  FileState state;
  absl::StatusOr<FileDescriptor> file = OpenForReading(path, &state);
  if (!file.ok()) return file.status();
  if (state.size > limit) {
    return absl::InvalidArgumentError(
        fmt::format("{}: has {} bytes, more than the {} allowed", path, state.size, limit));
  }
  std::string text(state.size, '\0');
  const absl::StatusOr<uint64_t> got = ReadAt(*file, path, 0, std::as_writable_bytes(std::span(text)));
  if (!got.ok()) return got.status();
  text.resize(*got);
  return text;
}

absl::Status WriteAll(const FileDescriptor& file, const std::string& path, std::span<const std::byte> data,
                      uint64_t* written) {
  while (!data.empty()) {
    const size_t wanted = std::min(data.size(), kMostPerCall);
    const ssize_t put = Retry([&] { return ::write(file.get(), data.data(), wanted); });
    if (put < 0) return SystemError(errno, path, fmt::format("cannot write {} bytes after {}", data.size(), *written));
    *written += static_cast<uint64_t>(put);
    data = data.subspan(static_cast<size_t>(put));
  }
  return absl::OkStatus();
}

absl::Status CheckSpace(const std::string& directory, std::string_view what, uint64_t bytes) {
  struct statvfs info;
  if (Retry([&] { return ::statvfs(directory.c_str(), &info); }) != 0) return absl::OkStatus();
  uint64_t available = 0;
  if (__builtin_mul_overflow(uint64_t{info.f_bavail}, uint64_t{info.f_frsize}, &available) || bytes <= available) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      fmt::format("{}: needs {} bytes on a disk that has {} left; nothing was written", what, bytes, available));
}

absl::Status WriteNewFile(const std::string& path, std::string_view content) {
  absl::StatusOr<FileDescriptor> file = CreateNew(path);
  if (!file.ok()) return file.status();
  uint64_t written = 0;
  absl::Status status = WriteAll(*file, path, std::as_bytes(std::span(content)), &written);
  return status.ok() ? SyncAndClose(*file, path) : status;
}

absl::Status SyncAndClose(FileDescriptor& file, const std::string& path) {
  if (Retry([&] { return ::fsync(file.get()); }) != 0) return SystemError(errno, path, "cannot be synced to disk");
  if (const int error = file.Close(); error != 0) return SystemError(error, path, "cannot be closed");
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const FileDescriptor directory(Retry([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (directory.get() < 0) return SystemError(errno, path, "cannot be opened");
  // Some file systems cannot sync a directory and say EINVAL: there is nothing to wait for.
  if (Retry([&] { return ::fsync(directory.get()); }) != 0 && errno != EINVAL) {
    return SystemError(errno, path, "cannot be synced to disk");
  }
  return absl::OkStatus();
}

absl::Status PublishAs(const std::string& from, const std::string& to) {
  int failed = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE);
  if (failed != 0 && (errno == EINVAL || errno == ENOSYS)) {
    // A file system without that flag. A second link never replaces a file. A directory cannot have one, but rename()
    // replaces an empty directory, so making that one claims the name.
    struct stat info;
    if (::lstat(from.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
      failed = ::mkdir(to.c_str(), 0777);
      if (failed == 0) failed = ::rename(from.c_str(), to.c_str());
    } else {
      failed = ::link(from.c_str(), to.c_str());
      if (failed == 0) ::unlink(from.c_str());
    }
  }
  if (failed != 0) {
    return SystemError(errno, to, "the finished file or directory cannot be moved here");
  }
  return SyncDirectory(DirectoryOf(to));
}

}  // namespace gpuledger
