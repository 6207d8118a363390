// gpuledger/trace.h - what a trace holds, entry by entry: the recorder writes it, the reader gives it back.
//
// Most entries are a ledger's records (record.h). The others say what no ledger knows: marks of the program, the steps of a
// settle, and facts about one allocation (who holds it) that were found out while the program ran. The bytes on disk are
// described in tracing/FORMAT.md. Thread-safe: plain values.
#pragma once

#include <cstdint>
#include <string_view>

#include "gpuledger/record.h"
#include "gpuledger/types.h"

namespace gpuledger {

enum class EntryKind : uint8_t {
  kRecord,         // `record` is a ledger's
  kMark,           // `text`: what the program called this moment
  kSettle,         // `settle`: a settle has come to this step
  kFact,           // `fact` about the allocation `record.allocation` of `record.device`; `text` or `value` by its kind
  kScopeEnded,     // the transient scope `scope` is over (OwnerScope::Transient): what was allocated in it should be gone
  // What was so when recording began, or when older entries were dropped. It comes first:
  kSnapshot,          // a live allocation: `record` as of its kAllocate, its owner as of then, `pending`
  kSnapshotPeak,      // of ledger `record.ledger`: `value` the most that was in use, `record.charged` what was reserved
  kSnapshotPeakShare, // of it, what `record.owner` and `record.role` had at the peak: `value`
  kSnapshotLineage,   // of weight `record.owner`: `value` 0 open, 1 closed
  kProgramEnded,   // the process ended in good order: nothing comes after
};

// The steps of a settle, in order. The ledger is read between them; what goes away in between says why it was alive.
enum class SettleStep : uint8_t {
  kBegin,      // what is live now is what the verdict is about
  kCompleted,  // streams were waited for and pending blocks completed: what went was deferred
  kCollected,  // the garbage collector ran: what went was held by cycles
  kReleased,   // workspaces that libraries are known to keep were dropped
  kEnd,        // facts are complete: the verdict holds
};

enum class FactKind : uint8_t {
  kHolder,        // `text`: a path that keeps the storage alive, such as "local 'value' of convert() in leaky_load.py:31"
  kTraceback,     // `text`: such a path that leads through a traceback or an exception that somebody keeps
  kAliases,       // `text`: counts by kind where no path is visible: "2 handles of the same tensor"
  kLargestView,   // `value`: bytes of the storage that its largest visible view covers
  kUnreachable,   // no address of it was found in the host memory of the process
  kTensor,        // `text`: what it is, such as "float16 [4096, 1024]"
};

struct TraceEntry {
  EntryKind kind = EntryKind::kRecord;
  Record record;  // of the other kinds: time, thread and sequence, and what is named above
  SettleStep settle = SettleStep::kBegin;
  FactKind fact = FactKind::kHolder;
  ScopeId scope{0};       // kScopeEnded: which
  bool pending = false;   // kSnapshot
  uint64_t value = 0;
  std::string_view text;  // valid until the next entry is read
};

}  // namespace gpuledger
