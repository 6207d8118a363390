#include "recorder_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>

namespace gpuledger::trace {
namespace {

std::string Replaced(std::string pattern, bool* had_process) {
  const std::string process = std::to_string(getpid());
  *had_process = false;
  for (size_t at = pattern.find("%p"); at != std::string::npos; at = pattern.find("%p", at + process.size())) {
    pattern.replace(at, 2, process);
    *had_process = true;
  }
  return pattern;
}

absl::Status Failed(const std::string& path, int error) {
  const std::string sentence = fmt::format("the trace {} cannot be made: {}", path, std::strerror(error));
  if (error == EEXIST) return absl::AlreadyExistsError(sentence);
  if (error == EACCES || error == EPERM || error == EROFS) return absl::PermissionDeniedError(sentence);
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(sentence);
  if (error == ENOSPC) return absl::ResourceExhaustedError(sentence);
  return absl::InternalError(sentence);
}

// The command line, its words separated by 0 as in /proc.
uint32_t ReadCommand(char* to, size_t room) {
  const int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const ssize_t got = read(fd, to, room);
  close(fd);
  return got > 0 ? static_cast<uint32_t>(got) : 0;
}

int64_t Now(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RecorderFile>> RecorderFile::Create(const std::string& pattern) {
  bool had_process = false;
  std::string path = Replaced(pattern, &had_process);
  const int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  int fd = open(path.c_str(), flags, 0600);
  if (fd < 0 && errno == EEXIST && !had_process) {
    path += fmt::format(".{}", getpid());
    fd = open(path.c_str(), flags, 0600);
  }
  if (fd < 0) return Failed(path, errno);
  int error = posix_fallocate(fd, 0, kHeaderBytes);
  void* mapped = MAP_FAILED;
  if (error == 0) {
    mapped = mmap(nullptr, kHeaderBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) error = errno;
  }
  if (error != 0) {
    close(fd);
    unlink(path.c_str());
    return Failed(path, error);
  }
  madvise(mapped, kHeaderBytes, MADV_DONTFORK);
  auto* const header = static_cast<FileHeader*>(mapped);
  header->version = kVersion;
  header->header_bytes = kHeaderBytes;
  header->process = static_cast<uint32_t>(getpid());
  header->parent = static_cast<uint32_t>(getppid());
  header->wall_clock_ns = Now(CLOCK_REALTIME);
  header->began_ns = static_cast<uint64_t>(Now(CLOCK_MONOTONIC));
  header->first_offset = kHeaderBytes;
  header->command_bytes = ReadCommand(header->command, sizeof header->command);
  std::atomic_ref(header->magic).store(kFileMagic, std::memory_order_release);
  return std::unique_ptr<RecorderFile>(new RecorderFile(std::move(path), fd, header));
}

RecorderFile::~RecorderFile() {
  munmap(header_, kHeaderBytes);
  close(fd_);
}

bool RecorderFile::Write(uint64_t offset, std::span<const unsigned char> bytes) {
  // Past the limit of file sizes a write would raise a signal that ends the program.
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && offset + bytes.size() > limit.rlim_cur) {
    SayOnce(EFBIG);
    return false;
  }
  while (!bytes.empty()) {
    const ssize_t wrote = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) {
      SayOnce(wrote < 0 ? errno : ENOSPC);
      return false;
    }
    offset += static_cast<uint64_t>(wrote);
    bytes = bytes.subspan(static_cast<size_t>(wrote));
  }
  return true;
}

bool RecorderFile::Append(std::span<const unsigned char> block) {
  if (end() + block.size() > most_.load(std::memory_order_relaxed)) {
    SayOnce(EFBIG);
    return false;
  }
  return Write(Reserve(block.size()), block);
}

unsigned char* RecorderFile::MapRing(uint64_t* offset) {
  // mmap wants whole pages: what is skipped to get there is a hole of at most one.
  const uint64_t at = (Reserve(kRingBytes + 4096) + 4095) / 4096 * 4096;
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && at + kRingBytes > limit.rlim_cur) {
    SayOnce(EFBIG);
    return nullptr;
  }
  if (const int error = posix_fallocate(fd_, static_cast<off_t>(at), kRingBytes); error != 0) {
    SayOnce(error);
    return nullptr;
  }
  void* const ring = mmap(nullptr, kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, static_cast<off_t>(at));
  if (ring == MAP_FAILED) {
    SayOnce(errno);
    return nullptr;
  }
  madvise(ring, kRingBytes, MADV_DONTFORK);
  *offset = at;
  return static_cast<unsigned char*>(ring);
}

void RecorderFile::UnmapRing(unsigned char* ring) { munmap(ring, kRingBytes); }

void RecorderFile::GiveBackRing(unsigned char* ring, uint64_t offset) {
  // Writing into a hole would ask the disk for room, and end the program where there is none.
  void* const replaced = mmap(ring, kRingBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (replaced != MAP_FAILED) Punch(offset, offset + kRingBytes, {});
}

bool RecorderFile::Punch(uint64_t begin, uint64_t end, const std::vector<uint64_t>& rings) {
  std::vector<uint64_t> sorted = rings;
  std::sort(sorted.begin(), sorted.end());
  sorted.push_back(end);
  bool good = true;
  for (const uint64_t ring : sorted) {
    const uint64_t until = std::min(ring, end);
    if (until > begin) {
      good &= fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin), static_cast<off_t>(until - begin)) == 0;
    }
    begin = std::max(begin, ring + kRingBytes);
  }
  return good;
}

void RecorderFile::SayOnce(int error) {
  if (said_.exchange(true)) return;
  std::fputs(fmt::format("gpuledger: the trace {} takes no more: {}; recording goes on if there is room again, and counts what is lost\n",
                         path_, std::strerror(error)).c_str(), stderr);
}

}  // namespace gpuledger::trace
