// allocator/ledger_impl.h - the data behind Ledger: accounts, entries, and how a peak remembers who was live.
//
// A change touches four accounts: the device's, the owner's, the role's, and that of the role of the owner. Who was
// live at the peak costs O(1) a change: every new peak opens an *epoch*; an account saves its value the first time it
// changes in an epoch. So the value at the peak is the saved one if the account has changed since, else the present one.
// A growing load makes a new peak at each charge and pays one comparison for it.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "gpuledger/ledger.h"
#include "sync.h"

namespace gpuledger {

struct Account {
  Bytes in_use, requested, pending, peak, charged_ever;
  uint64_t count = 0, pending_count = 0;
  Bytes saved;                       // in_use at the peak of saved_epoch
  uint64_t saved_epoch = UINT64_MAX;  // none yet

  void Touch(uint64_t epoch) {
    if (saved_epoch == epoch) return;
    saved = in_use;
    saved_epoch = epoch;
  }
  [[nodiscard]] Bytes at_peak(uint64_t epoch) const { return saved_epoch == epoch ? saved : in_use; }
};

// One live charge, in the list of its owner.
struct Charge::Entry {
  Ledger::Impl* ledger = nullptr;
  Entry* previous = nullptr;
  Entry* next = nullptr;  // in the owner's list, or in the list of unused entries
  AllocationId id{0};
  Payer payer;
  Bytes requested, charged;
  Stream stream = Stream::Default(DeviceId{0});
  DevicePtr address = DevicePtr::Null(DeviceId{0});
  SiteId site = kNoSite;
  ThreadId thread{0};
  TimePoint time{0};
  uint64_t debit_sequence = 0;
  uint64_t pending_sequence = UINT64_MAX;  // while in use

  [[nodiscard]] bool pending() const { return pending_sequence != UINT64_MAX; }
  [[nodiscard]] LiveAllocation info() const {
    return {id, payer, requested, charged, stream, address, site, thread, time, pending()};
  }
};

struct OwnerAccounts {
  Account total;
  std::array<std::unique_ptr<Account>, kRoleCount> roles;
  Charge::Entry* first = nullptr;
  Charge::Entry* last = nullptr;
  LineageState lineage = LineageState::kNone;
};

struct Ledger::Impl {
  Impl(DeviceId device_id, const Clock& its_clock, RecordSink* its_sink)
      : device(device_id), clock(its_clock), sink(its_sink) {}

  const DeviceId device;
  const Clock& clock;
  RecordSink* const sink;

  mutable Mutex mutex;
  Account total GPULEDGER_GUARDED_BY(mutex);
  std::array<Account, kRoleCount> by_role GPULEDGER_GUARDED_BY(mutex);
  std::vector<std::unique_ptr<OwnerAccounts>> owners GPULEDGER_GUARDED_BY(mutex);  // by owner id, null if never charged
  std::deque<Charge::Entry> entries GPULEDGER_GUARDED_BY(mutex);                    // storage only; never shrinks
  Charge::Entry* unused GPULEDGER_GUARDED_BY(mutex) = nullptr;
  uint64_t sequence GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t next_allocation GPULEDGER_GUARDED_BY(mutex) = 1;
  uint64_t open_lineages GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t epoch GPULEDGER_GUARDED_BY(mutex) = 0;          // how many peaks there were
  uint64_t peak_sequence GPULEDGER_GUARDED_BY(mutex) = 0;  // of the change that made the last one

  OwnerAccounts& OwnerOf(OwnerId owner) GPULEDGER_REQUIRES(mutex);
  const OwnerAccounts* FindOwner(OwnerId owner) const GPULEDGER_REQUIRES(mutex);
  Account& AccountOf(OwnerAccounts& owner, Role role) GPULEDGER_REQUIRES(mutex);
  // The four accounts that pay for `payer`, already saved for the present epoch.
  std::array<Account*, 4> Touch(Payer payer) GPULEDGER_REQUIRES(mutex);
  bool LiveAtPeak(const Charge::Entry& entry) const GPULEDGER_REQUIRES(mutex);

  void Link(Charge::Entry& entry) GPULEDGER_REQUIRES(mutex);
  void Unlink(Charge::Entry& entry) GPULEDGER_REQUIRES(mutex);
  uint64_t Write(RecordKind kind, const Charge::Entry& entry, TimePoint time, ThreadId thread) GPULEDGER_REQUIRES(mutex);

  void WriteNote(Record record) GPULEDGER_REQUIRES(mutex);  // time and thread are set

  Usage Read(const Account& account) const GPULEDGER_REQUIRES(mutex);
  Residual ResidualOf(OwnerId weight, const OwnerAccounts& owner) const GPULEDGER_REQUIRES(mutex);
  absl::Status Check() const GPULEDGER_REQUIRES(mutex);
};

// Dense, given to each thread the first time it asks.
ThreadId ThisThread();

}  // namespace gpuledger
