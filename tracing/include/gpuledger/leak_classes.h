// gpuledger/leak_classes.h - which kind of leak a live block is, or none: first match, in this order.
//
// The predicates are over what is known at a settled checkpoint (trace.h: SettleStep), from the ledger or from a trace: the
// code that decides is one. The classes partition the bytes that were live when the settle began. Pure functions,
// thread-safe. Growth and lifetime outliers are properties of groups, not of blocks, and lie over the classes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gpuledger/ledger.h"
#include "gpuledger/trace.h"
#include "gpuledger/types.h"

namespace gpuledger {

enum class LeakClass : uint8_t {
  kUnbalanced,     // live when its upstream or process ended in good order
  kDeferred,       // no leak: freed, but work was outstanding when the settle began
  kLost,           // no address of it anywhere in host memory
  kCycle,          // went with the garbage collector
  kTracebackHeld,  // a traceback or a kept exception holds it
  kScopeEscape,    // its transient scope is over, and nobody adopted it
  kSuperseded,     // source or staging of a weight whose lineage is closed; undeclared: a warning
  kViewPinned,     // its largest visible view covers less than a part of it
  kKept,           // held on purpose
};
inline constexpr int kLeakClassCount = 9;
GPULEDGER_EXPORT std::string_view LeakClassName(LeakClass leak_class);  // "scope escape"

enum class Severity : uint8_t { kNone, kInfo, kWarning, kError };

// A block that was live when the settle began, and all that is known of it.
struct LiveBlock {
  DeviceId device{0};
  AllocationId id{0};
  Payer payer;               // with the transient scope it was made in, if it was not adopted since
  Bytes requested, charged;
  SiteId site = kNoSite;
  ThreadId thread{0};
  TimePoint allocated{0};
  bool pending = false;      // at the settle's beginning
  bool gone = false;         // was not live any more at its end ...
  SettleStep gone_by = SettleStep::kEnd;  // ... and went before this step
  bool unreachable = false;
  uint64_t largest_view = UINT64_MAX;     // bytes; UINT64_MAX: not known
  std::vector<std::string> holders;       // kHolder facts, then kAliases
  std::vector<std::string> tracebacks;    // kTraceback facts of this settle; older ones are holders: they may be over
  std::string tensor;                     // kTensor fact
};

// What a verdict needs to know beside the blocks. Unsettled: classes that need a settle (lost, cycle, traceback-held, undeclared
// supersession, view-pinned) are undecided; what was declared (scope escape, superseded) is known all the same.
struct VerdictContext {
  bool settled = false;
  bool ended = false;                              // the program, in good order; a block it kept after a settle stays kept
  std::vector<OwnerId> closed_lineages;            // sorted
  std::vector<OwnerId> open_lineages;              // sorted; conversions under way supersede nothing yet
  std::vector<ScopeId> ended_scopes;               // sorted
  uint32_t view_permille = 500;                    // kViewPinned: a largest view below this share of its storage
};

struct BlockVerdict {
  LeakClass leak_class = LeakClass::kKept;
  Severity severity = Severity::kNone;
  bool undecided = false;  // kept as far as anybody knows, but nothing was settled
};
// One verdict a block, in their order.
GPULEDGER_EXPORT std::vector<BlockVerdict> Classify(const std::vector<LiveBlock>& blocks, const VerdictContext& context);

}  // namespace gpuledger
