// gpuledger/record.h - one entry of a trace, and where entries go.
//
// The ledger writes a record for whatever changes who owns what; the allocator writes one for each upstream call that
// changes `reserved`, and for each out-of-memory. A RecordSink takes them; the core knows no more of tracing than this.
#pragma once

#include <cstdint>

#include "gpuledger/types.h"

namespace gpuledger {

enum class RecordKind : uint8_t {
  kAllocate,       // a block was charged to owner and role
  kFreeRequested,  // its holder let go; the owner no longer pays
  kFreeCompleted,  // the block can be used again (same instant as the request unless work was pending on another stream)
  kTransfer,       // the charge has a new owner and role (those in the record; the id says whose it was)
  kLineageOpened,  // a weight began its way source -> staging -> quantized
  kLineageClosed,  // from here on its source and staging bytes are residual
  kMapped,         // reserved grew by `charged`
  kUnmapped,       // reserved shrank by `charged`
  kOutOfMemory,    // a request of `requested` bytes failed
};

// Fixed size, copied freely. Thread and sequence name a record: a thread's numbers grow with what it does (its first need
// not be 1, and none is used twice). Across threads the order is by time.
struct Record {
  uint64_t sequence = 0;
  TimePoint time{0};
  AllocationId allocation{0};
  uint64_t address = 0;
  Bytes requested;
  Bytes charged;
  CUstream_st* stream = nullptr;
  OwnerId owner{0};
  SiteId site = kNoSite;
  ThreadId thread{0};
  ScopeId scope{0};  // of its payer: the transient scope it was made in, 0 for none or once it is adopted
  DeviceId device{0};
  LedgerId ledger{0};  // whose record it is; a thread's sequence is one for each ledger
  Role role = Role::kOther;
  RecordKind kind = RecordKind::kAllocate;
};

// What records are stamped with. Upstreams are clocks; the fake has one of its own.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual TimePoint now() const = 0;  // nanoseconds, never going back; thread-safe
};

// Where records go. Write is called on the thread that made the change, by several threads at once: for an allocation
// before its address is given out, for a completed free before the block can be handed out again. It must not block,
// allocate through the ledger that calls it, or call back into it: a lock of the ledger is held.
class RecordSink {
 public:
  virtual ~RecordSink() = default;
  virtual void Write(const Record& record) noexcept = 0;
  // The two records of a free that is complete at once, one behind the other, for a sink that does better than one by one.
  virtual void WriteFree(const Record& requested, const Record& completed) noexcept {
    Write(requested);
    Write(completed);
  }
  // A transient scope is over (owner.h). Called with no lock held, of the process's default sink alone.
  virtual void ScopeEnded(ScopeId scope) noexcept { static_cast<void>(scope); }
};

// Where ledgers write that were given no sink of their own: a recorder, once one serves the process, else null. It may be set
// while ledgers are at work, and stays valid until it is replaced and nobody can be inside it.
GPULEDGER_EXPORT RecordSink* DefaultRecordSink() noexcept;
GPULEDGER_EXPORT void SetDefaultRecordSink(RecordSink* sink) noexcept;

}  // namespace gpuledger
