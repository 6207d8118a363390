// gpuledger/trace_reader.h - reads a trace, also one that is still being written, or whose writer was killed.
//
// Entries come in the order of their times, those of one thread in the order in which it wrote them. Memory does not grow
// with the file. Any input is survived: what is damaged is skipped, and told by its offset.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/trace.h"
#include "gpuledger/types.h"

namespace gpuledger {

// A frame of a site: of Python, or native.
struct TraceFrame {
  bool python = false;
  std::string function;     // native: empty until symbolised
  std::string file;         // of Python: the source; native: the module's path
  uint32_t line = 0;
  uint64_t offset = 0;      // native: within the module
  std::string build_id;     // native: of the module, in hexadecimal, "" if it has none
};

// Something in the file that could not be read.
struct TraceProblem {
  uint64_t offset = 0;
  std::string what;  // a sentence
};

struct TraceInfo {
  uint32_t version = 0;
  uint64_t process = 0, parent = 0;
  std::string command;           // what the process was started as
  int64_t wall_clock_ns = 0;     // since 1970, when the trace began
  TimePoint began{0};            // the same instant on the clock of the records
  uint64_t lost = 0;             // entries that the disk had no room for
  uint64_t dropped_bytes = 0;    // of older entries, folded into a snapshot
  std::vector<TraceProblem> problems;
};

class GPULEDGER_EXPORT TraceReader {
 public:
  // kNotFound, kPermissionDenied, kInvalidArgument: no trace (the sentence says what it is instead, if that is plain), or of a
  // version from the future.
  static absl::StatusOr<std::unique_ptr<TraceReader>> Open(const std::string& path);
  virtual ~TraceReader() = default;
  // False at the end. Never fails: what is damaged is skipped, see info().problems.
  virtual bool Next(TraceEntry* entry) = 0;
  // From the first entry once more.
  virtual void Rewind() = 0;
  // Of what has been read so far; complete once Next was false. Valid until the reader goes.
  [[nodiscard]] virtual const TraceInfo& info() const = 0;
  [[nodiscard]] virtual std::string_view owner_name(OwnerId owner) const = 0;            // "owner 17" if it was never defined
  [[nodiscard]] virtual const std::vector<TraceFrame>& site(SiteId site) const = 0;      // innermost first; empty if unknown
  [[nodiscard]] virtual double progress() const = 0;                                     // 0 to 1, for a progress bar
};

}  // namespace gpuledger
