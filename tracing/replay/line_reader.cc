#include "line_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace gpuledger::replay {
namespace {

constexpr size_t kBuffer = 256 << 10;
constexpr size_t kLongestLine = 256;

}  // namespace

absl::StatusOr<LineReader> LineReader::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(fmt::format("{}: {}", path, std::strerror(errno)));
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || S_ISDIR(info.st_mode)) {
    ::close(fd);
    return absl::InvalidArgumentError(fmt::format("{}: is a directory; a trace is a file", path));
  }
  gzFile file = ::gzdopen(fd, "rb");
  if (file == nullptr) {
    ::close(fd);
    return absl::InternalError(fmt::format("{}: zlib has no memory to read it", path));
  }
  ::gzbuffer(file, 128 << 10);
  return LineReader(file, Bytes(static_cast<uint64_t>(info.st_size)));
}

LineReader::LineReader(gzFile file, Bytes size) : file_(file), size_(size), buffer_(kBuffer) {}

LineReader::LineReader(LineReader&& other) noexcept
    : file_(std::exchange(other.file_, nullptr)),
      size_(other.size_),
      buffer_(std::move(other.buffer_)),
      begin_(other.begin_),
      end_(other.end_) {}

LineReader::~LineReader() {
  if (file_ != nullptr) ::gzclose(file_);
}

Bytes LineReader::compressed_position() const {
  const z_off_t offset = ::gzoffset(file_);
  return Bytes(static_cast<uint64_t>(offset < 0 ? 0 : offset));
}

absl::StatusOr<bool> LineReader::Fill() {
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  const int count = ::gzread(file_, buffer_.data() + end_, static_cast<unsigned>(buffer_.size() - end_));
  // zlib reads what is not gzip as it stands.
  if (::gzdirect(file_) != 0) return absl::InvalidArgumentError("not a gzip file");
  int error = Z_OK;
  const char* const message = ::gzerror(file_, &error);
  if (error == Z_BUF_ERROR) return absl::InvalidArgumentError("the gzip file is truncated");
  if (count < 0 || error < 0) {
    return absl::InvalidArgumentError(
        fmt::format("the gzip file is damaged: {}", error == Z_ERRNO ? std::strerror(errno) : message));
  }
  end_ += static_cast<size_t>(count);
  return count > 0;
}

absl::StatusOr<bool> LineReader::Next(std::string_view* line) {
  for (size_t searched = 0;;) {
    const std::string_view left(buffer_.data() + begin_, end_ - begin_);
    size_t length = left.find('\n', searched);
    if (length == left.npos) {
      if (left.size() > kLongestLine) break;
      searched = left.size();
      const absl::StatusOr<bool> more = Fill();
      if (!more.ok()) return more.status();
      if (*more) continue;
      if (left.empty()) return false;
      length = searched;  // the last line has no end
    }
    *line = std::string_view(buffer_.data() + begin_, length);
    begin_ += length + (begin_ + length < end_ ? 1 : 0);
    if (line->ends_with('\r')) line->remove_suffix(1);
    if (line->size() > kLongestLine) break;
    return true;
  }
  return absl::InvalidArgumentError(fmt::format("the line has more than {} characters", kLongestLine));
}

}  // namespace gpuledger::replay
