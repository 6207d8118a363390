// tracing/recorder_file.h - the trace file as its writer has it: space handed out by one atomic add, never waited for.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

#include "trace_format.h"

namespace gpuledger::trace {

class RecorderFile {
 public:
  // Makes the file, 0600 and never over another one. `pattern`: %p is the process id; where it is missing and the name is
  // taken, the id is appended. Its header is written, and mapped.
  static absl::StatusOr<std::unique_ptr<RecorderFile>> Create(const std::string& pattern);
  ~RecorderFile();
  RecorderFile(const RecorderFile&) = delete;
  RecorderFile& operator=(const RecorderFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  // Mapped; a forked child must not touch it.
  [[nodiscard]] FileHeader& header() { return *header_; }
  [[nodiscard]] uint64_t end() const { return end_.load(std::memory_order_acquire); }

  // A block, wherever there is room. False, and said once on stderr, where there is none.
  bool Append(std::span<const unsigned char> block);
  // Space for `bytes`, aligned; nobody else gets it.
  uint64_t Reserve(uint64_t bytes) {
    return end_.fetch_add((bytes + kAlignment - 1) / kAlignment * kAlignment, std::memory_order_acq_rel);
  }
  // False, and said once on stderr, where the disk or the limit of file sizes has no room.
  bool Write(uint64_t offset, std::span<const unsigned char> bytes);
  // A ring: on the disk already, so that writing into it cannot fail; null if there is no room. `offset` is where it lies.
  unsigned char* MapRing(uint64_t* offset);
  void UnmapRing(unsigned char* ring);
  // Its space on the disk; whoever is still inside writes into memory of no file.
  void GiveBackRing(unsigned char* ring, uint64_t offset);
  // Append takes nothing that ends beyond this.
  void SetMost(uint64_t most) { most_.store(most, std::memory_order_relaxed); }
  // Gives [begin, end) back to the file system, but for rings. False if it cannot.
  bool Punch(uint64_t begin, uint64_t end, const std::vector<uint64_t>& rings);
  void CountLost(uint64_t entries) { std::atomic_ref(header_->lost).fetch_add(entries, std::memory_order_relaxed); }

 private:
  RecorderFile(std::string path, int fd, FileHeader* header) : path_(std::move(path)), fd_(fd), header_(header) {}
  void SayOnce(int error);

  const std::string path_;
  const int fd_;
  FileHeader* const header_;
  std::atomic<uint64_t> end_{kHeaderBytes};
  std::atomic<uint64_t> most_{UINT64_MAX};
  std::atomic<bool> said_{false};
};

}  // namespace gpuledger::trace
