// gpuledger/ledger.h - who pays for device memory, to the byte.
//
// A Ledger holds all charges of one device and their totals. Debit returns a Charge, a move-only receipt; when it dies
// the owner is credited. Every charge is in exactly one state: in use (its owner pays) or pending (freed, stream work
// outstanding: nobody pays, but it is counted with its owner until complete). At every instant
//
//   in_use = sum over owners = sum over roles = sum over (owner, role)       (CheckInvariants)
//
// Each thread may hold its changes back for a while, but only while no order of what is held back could make a new peak
// of the device, of a role or of an owner, or cross a soft cap. So peaks and who was live at the peak are always exact, in
// the order in which changes reach the ledger. usage() is the caller's own changes and what other threads have flushed;
// all that enumerates or judges (live, residuals, by owner, at the peak, invariants) flushes first and is exact.
//
// Thread-safe. Never synchronises a device. Allocates host memory only for the first charges of an owner or a thread and
// when more charges are live than ever before. The ledger outlives its charges (fatal otherwise); after main() all calls are legal.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/owner.h"
#include "gpuledger/record.h"
#include "gpuledger/types.h"

namespace gpuledger {

class Ledger;

// What is charged. requested <= charged, and charged > 0; the difference is rounding.
struct ChargeRequest {
  Payer payer;
  Bytes requested;
  Bytes charged;
  Stream stream;
  DevicePtr address;
  SiteId site = kNoSite;
};

// A copy of one live charge.
struct LiveAllocation {
  AllocationId id;
  Payer payer;
  Bytes requested;
  Bytes charged;
  Stream stream;
  DevicePtr address;
  SiteId site;
  ThreadId thread;   // that charged it
  TimePoint time;    // when it was charged
  bool pending;
};

// A receipt for charged bytes. Moved, never copied, merged or re-tagged (Ledger::Transfer does that, and records it).
class [[nodiscard]] GPULEDGER_EXPORT Charge {
 public:
  Charge(Charge&& other) noexcept : entry_(other.entry_) { other.entry_ = nullptr; }
  Charge& operator=(Charge&&) = delete;
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;
  // In use: free requested and completed in one instant. Pending: completed.
  ~Charge() {
    if (entry_ != nullptr) Complete();
  }
  // The owner stops paying; the bytes count as its pending bytes until this charge dies. Once per charge.
  void MakePending();
  [[nodiscard]] LiveAllocation info() const;

  struct Entry;  // the library's own (ledger_impl.h)

 private:
  friend class Ledger;
  explicit Charge(Entry* entry) : entry_(entry) {}
  void Complete() noexcept;
  Entry* entry_;
};

// What a soft cap has to say. Other threads' changes may have happened since.
struct SoftCapCrossing {
  OwnerId owner;
  Bytes cap;
  Bytes in_use;  // the owner's, with the charge that crossed it
};

// Totals of the device, of an owner, of a role, or of one role of one owner.
struct Usage {
  Bytes in_use;          // charged now
  Bytes requested;       // of those, asked for: in_use = requested + rounding
  Bytes pending;         // freed, stream work outstanding
  Bytes peak;            // largest in_use since the start or ResetPeak
  Bytes at_device_peak;  // in_use at the instant of the device's peak
  Bytes charged_ever;    // all that was ever charged or transferred to it
  uint64_t count = 0;    // charges in use
  uint64_t pending_count = 0;
};

struct OwnerUsage {
  Payer payer;
  Usage usage;
};

enum class LineageState : uint8_t { kNone, kOpen, kClosed };

// The way of one weight. A stage it skipped has charged_ever 0 (a load that streams has no source on the device).
struct Lineage {
  LineageState state = LineageState::kNone;
  Usage source;
  Usage staging;
  Usage quantized;
};

struct Residual {
  OwnerId weight;
  Bytes bytes;  // charged and pending, roles source and staging
  std::vector<LiveAllocation> allocations;
};

// The ledger at one instant.
struct LedgerMoment {
  LedgerId id{0};
  TimePoint time{0};
  Usage usage;                          // of the device
  std::vector<OwnerUsage> owners;       // in no order
  std::vector<LiveAllocation> live;     // in use and pending, by time
  std::vector<OwnerId> open_lineages;   // by id
  std::vector<OwnerId> closed_lineages;
  // The number of each thread's last record of a change that is in it; later ones are of later changes.
  struct Cut {
    ThreadId thread{0};
    uint64_t sequence = 0;
  };
  std::vector<Cut> cuts;
};

class GPULEDGER_EXPORT Ledger {
 public:
  // `clock` stamps records and charges; `sink` takes records, null for DefaultRecordSink(). Both outlive the ledger.
  Ledger(DeviceId device, const Clock& clock, RecordSink* sink = nullptr);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  [[nodiscard]] DeviceId device() const;

  // Charges and returns the receipt. Errors: none (a ledger never refuses; a cap is the allocator's).
  [[nodiscard]] Charge Debit(const ChargeRequest& request);
  // Re-tags a live charge, now and in who was live at the peak; recorded. An owner's own `peak` is not rewritten: the
  // giver's stays, the receiver's rises to what it has now, so its at_device_peak may exceed it.
  void Transfer(const Charge& charge, Payer to);

  // All of the caller's own changes, and what other threads have flushed; `peak` and `at_device_peak` are exact. A few
  // tens of nanoseconds, without waiting for other threads. Where another thread holds a charge back that this one freed, a
  // total is 0, not below. Exact if no other thread has charged or freed since the last Flush().
  [[nodiscard]] Usage usage() const;
  [[nodiscard]] Usage usage(OwnerId owner) const;
  [[nodiscard]] Usage usage(Role role) const;
  [[nodiscard]] Usage usage(OwnerId owner, Role role) const;
  // Every (owner, role) that was ever charged, largest in_use first, then by name.
  [[nodiscard]] std::vector<OwnerUsage> usage_by_owner() const;
  // Who was live at the peak: every (owner, role) with at_device_peak > 0, largest first. Sums to usage().peak.
  [[nodiscard]] std::vector<OwnerUsage> live_at_peak() const;
  // Live charges (in use and pending) of `owner`, or all, by the time at which they were charged, those of one thread in
  // the order in which it charged them.
  [[nodiscard]] std::vector<LiveAllocation> live(OwnerId owner) const;
  [[nodiscard]] std::vector<LiveAllocation> live() const;
  // All of it at one instant. Stops all threads' changes for as long as it takes to copy what is live.
  [[nodiscard]] LedgerMoment moment() const;
  // All peaks start again from what is in use now.
  void ResetPeak();
  // From here usage() holds every change that reached the ledger before. Stops all threads' changes for a moment.
  void Flush() const;

  // Calls `on_crossing` when a charge or a transfer takes what `owner` has in use above `cap`: once, on the thread whose
  // change it was, with no lock of the ledger held. It can be called again once the owner has been at or below the cap. If
  // the owner is above it now, that is no crossing. One cap an owner: the last one set; an empty callback takes it away.
  void set_soft_cap(OwnerId owner, Bytes cap, std::function<void(const SoftCapCrossing&)> on_crossing);

  // Lineage of a weight. Opening an open one and closing one that is not open change nothing but are recorded.
  void OpenLineage(OwnerId weight);
  void CloseLineage(OwnerId weight);
  [[nodiscard]] Lineage lineage(OwnerId weight) const;
  // kFailedPrecondition, "undecided", unless the weight's lineage is closed: an unfinished load has no verdict.
  [[nodiscard]] absl::StatusOr<Residual> residual(OwnerId weight) const;
  // Of all closed lineages, those with residual > 0, largest first.
  [[nodiscard]] std::vector<Residual> residuals() const;
  // How many lineages are open: while this is not 0, residuals() is not the last word.
  [[nodiscard]] uint64_t open_lineages() const;

  // Writes a record that is not about a charge (kMapped, kUnmapped, kOutOfMemory): sequence, time and thread are filled in.
  void Note(Record record);

  // The equations above, recomputed from the live charges; kInternal with the one that does not hold.
  [[nodiscard]] absl::Status CheckInvariants() const;

  // Held around fork(), so that a forked child finds the ledger whole.
  void LockForFork();
  void UnlockAfterFork();
  // In a forked child, after UnlockAfterFork: counts what the threads that are not here had held back.
  void ForgetOtherThreads();

  // The library's own (ledger_impl.h).
  struct Impl;
  struct Shard;
  [[nodiscard]] Impl& impl() const { return *impl_; }

 private:
  friend class Charge;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gpuledger
