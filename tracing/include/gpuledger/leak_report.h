// gpuledger/leak_report.h - what is still alive, by class, owner, holder and stack: from a trace, or of this process.
//
//   sum over classes = bytes live when the settle began (asserted by every report)
//
// Text in the shape of LeakSanitizer's report, and JSON by tracing/report.schema.json.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/leak_classes.h"
#include "gpuledger/suppressions.h"
#include "gpuledger/trace_reader.h"

namespace gpuledger {

// Blocks alike in class, owner, role, stack and holders.
struct LeakGroup {
  LeakClass leak_class = LeakClass::kKept;
  Severity severity = Severity::kNone;
  std::string owner;
  Role role = Role::kOther;
  Bytes bytes;                       // charged
  uint64_t count = 0;
  uint64_t oldest_age_ns = 0;        // at the settle's beginning
  std::vector<std::string> holders;
  std::vector<TraceFrame> stack;     // innermost first
  std::string tensor;                // if all of the group are alike
  std::string suppressed_by;         // the rule, "" if none
};

struct GrowthGroup {  // an owner and stack whose live bytes rose between all marks after the warm-up
  std::string owner;
  std::vector<TraceFrame> stack;
  std::vector<Bytes> at_marks;
  std::string suppressed_by;
};

struct OutlierGroup {  // one alive long after its siblings (same stack, same size class) were freed
  std::string owner;
  std::vector<TraceFrame> stack;
  Bytes bytes;
  uint64_t siblings = 0;
};

struct PeakShare {  // who was live at the peak
  std::string owner;
  Role role = Role::kOther;
  Bytes bytes;
  uint64_t count = 0;
};

struct BlockAtPeak {
  LiveBlock block;
  std::string owner;
  std::vector<TraceFrame> stack;
};

struct ClassTotal {
  Bytes bytes;
  uint64_t count = 0;
};

struct LeakReport {
  Bytes live;                  // in use and pending when the settle began (or at the end of the trace)
  Bytes in_use, pending, reserved, cached, rounding;
  Bytes peak;                  // of in_use
  bool settled = false;
  bool ended = false;          // the program, in good order
  std::string undecided_why;   // "" if the verdict is whole: see IsDecided
  std::array<ClassTotal, kLeakClassCount> classes;
  ClassTotal undecided;        // part of kKept
  std::vector<LeakGroup> leaks;          // every class but kKept and kDeferred; errors first, then by bytes
  std::vector<LeakGroup> kept;           // the largest owners of what is held on purpose
  std::vector<GrowthGroup> growth;
  std::vector<OutlierGroup> outliers;
  std::vector<PeakShare> at_peak;
  std::vector<BlockAtPeak> blocks_at_peak;  // with ReportOptions::blocks; largest first
  uint64_t entries = 0;        // of the trace
  uint64_t allocations = 0;    // of them; 0: nothing was recorded
  TraceInfo trace;             // of a trace; empty for this process
};

struct ReportOptions {
  Suppressions suppressions;
  bool blocks = false;           // every block at the peak
  bool redact = false;           // no paths, no names: hashes of them
  bool symbolise = true;
  uint32_t growth_warmup = 3;    // marks
  std::function<void(double)> on_progress;  // may be empty
};

GPULEDGER_EXPORT absl::StatusOr<LeakReport> ReportOnTrace(TraceReader& trace, const ReportOptions& options);

// Whether the verdict is whole: after a settle, or if a program ended in good order and left nothing that one would be needed for.
GPULEDGER_EXPORT bool IsDecided(const LeakReport& report);
// True if something is reported as an error and not suppressed, growth included.
GPULEDGER_EXPORT bool HasLeaks(const LeakReport& report);
GPULEDGER_EXPORT std::string ToText(const LeakReport& report, bool colour);
GPULEDGER_EXPORT std::string ToJson(const LeakReport& report);

}  // namespace gpuledger
