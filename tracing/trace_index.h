// tracing/trace_index.h - where the segments of a trace are: in blocks, and in the rings of a writer that may be at work.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/trace_reader.h"
#include "trace_format.h"

namespace gpuledger::trace {

// One segment: in a block at `offset`, or copied out of a ring.
struct SegmentPlace {
  uint64_t number = 0;
  uint64_t first_ns = 0;
  uint64_t offset = 0;  // of the block; 0: in `copied`
  uint32_t stored_bytes = 0, raw_bytes = 0, entries = 0;
  std::vector<unsigned char> copied;
};

// Reads bytes of the file; short at its end.
class TraceFile {
 public:
  static absl::StatusOr<std::unique_ptr<TraceFile>> Open(const std::string& path);
  ~TraceFile();
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;
  // How many bytes there were.
  size_t Read(uint64_t offset, void* to, size_t bytes) const;
  [[nodiscard]] uint64_t size() const;
  // The first offset from `from` on that is not in a hole of the file; its size if there is none.
  [[nodiscard]] uint64_t DataFrom(uint64_t from) const;

 private:
  explicit TraceFile(int fd) : fd_(fd) {}
  const int fd_;
};

struct TraceIndex {
  FileHeader header{};
  std::map<uint32_t, std::vector<SegmentPlace>> by_thread;  // in the order in which the thread wrote them
  std::vector<SegmentPlace> snapshot;                       // blocks of the snapshot that the entries continue
  std::vector<TraceProblem> problems;
  uint64_t bytes = 0;  // of blocks, compressed
};

// kInvalidArgument if the file is no trace, or of a later version.
absl::StatusOr<TraceIndex> MakeIndex(const TraceFile& file, const std::string& path);

// The entries of a segment, decompressed; false, and a problem noted, if its bytes are damaged.
bool LoadSegment(const TraceFile& file, const SegmentPlace& place, std::vector<unsigned char>* raw, std::vector<TraceProblem>* problems);

}  // namespace gpuledger::trace
