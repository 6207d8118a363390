// quant/file_io.h - files as quant needs them: every call checked, short ones continued, nothing replaced.
//
// Statuses name the path and carry the system's reason; a full disk is kResourceExhausted. Thread-safe, no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace gpuledger {

// An open file descriptor, closed on destruction.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.Release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor() { Close(); }
  [[nodiscard]] int get() const { return fd_; }
  // Closes now. The error that close() reports, if any, is lost in the destructor but not here.
  int Close();

 private:
  int Release();
  int fd_;
};

// "PATH: WHAT: reason", with the code that belongs to `error` (an errno value).
absl::Status SystemError(int error, std::string_view path, std::string_view what);

// `text` as a JSON string of at most about 200 characters: safe to print, whatever a file had in it.
std::string Quoted(std::string_view text);

// The path without trailing slashes and "." parts; the directory that holds it.
std::string NormalPath(const std::string& path);
std::string DirectoryOf(const std::string& path);

// Whether anything has that name, be it a link to nowhere.
bool Exists(const std::string& path);

// A hidden name beside `path` that nobody else uses: a file system's rename needs the same directory.
std::string TemporaryNameFor(const std::string& path);

// What tells that a file was written to: its size, and when that happened last.
struct FileState {
  uint64_t size = 0;
  int64_t seconds = 0, nanoseconds = 0;
  friend bool operator==(const FileState&, const FileState&) = default;
};
absl::StatusOr<FileState> StateOf(const FileDescriptor& file, const std::string& path);

// Opens a regular file (links are followed; FIFOs and devices are refused without waiting for them).
absl::StatusOr<FileDescriptor> OpenForReading(const std::string& path, FileState* state);
// kAlreadyExists if there is one.
absl::StatusOr<FileDescriptor> CreateNew(const std::string& path);

// Reads until `out` is full or the file ends; returns the number of bytes read.
absl::StatusOr<uint64_t> ReadAt(const FileDescriptor& file, const std::string& path, uint64_t offset,
                                std::span<std::byte> out);
// A file of at most `limit` bytes, whole; kInvalidArgument if it is larger.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, uint64_t limit);
// Appends; `written` counts the bytes of the file and is named in an error.
absl::Status WriteAll(const FileDescriptor& file, const std::string& path, std::span<const std::byte> data,
                      uint64_t* written);

// kResourceExhausted if the file system of `directory` has less than `bytes` for this user; `what` is what will be
// written. Quotas are not seen, and others write too: the error can still come later.
absl::Status CheckSpace(const std::string& directory, std::string_view what, uint64_t bytes);

// A new file with this content, synced.
absl::Status WriteNewFile(const std::string& path, std::string_view content);

// Syncs and closes.
absl::Status SyncAndClose(FileDescriptor& file, const std::string& path);
absl::Status SyncDirectory(const std::string& path);
// kAlreadyExists, and nothing done, if `to` exists. Files and directories. Syncs the directory of `to`.
absl::Status PublishAs(const std::string& from, const std::string& to);

}  // namespace gpuledger
