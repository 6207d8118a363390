// allocator/ledger_impl.h - the data behind Ledger: central accounts, a shard a thread, entries.
//
// A change touches four accounts: the device's, the owner's, the role's, and that of the role of the owner. A thread
// holds its changes back in its *shard* as long as that can change no peak, and else goes *central*: the accounts
// themselves, under one mutex.
//
// Peaks are exact. For each account, central in_use + the sum of all budgets <= limit (the peak, or an armed soft cap
// below it), and what a shard has held back never exceeds its budget: decreases are always held back, and add to its
// room; an increase is if there is room for it. So in whatever order held-back changes happen, what is truly in use stays
// at or below central in_use + budgets, hence below the peak: no peak can be made unseen. Nor can one be missed or
// invented: a change that may exceed a limit first *stops the ledger* (the central mutex and the locks of all shards that
// may hold changes back, all taken before the first is drained), so it is compared with what is truly in use at one
// instant. Two shortcuts: an account that no other shard may hold changes of needs no stop; and before a stop, room that
// others do not use is taken back from them (Borrow): budgets move, and their sum stays.
//
// Who was live at the peak costs O(1) a change: each new peak of the device opens an *epoch*, with everything drained; an
// account saves its value at its first central change in an epoch. So the value at the peak is the saved one if the
// account has changed since, else the present one, and held-back changes, all younger than the peak, do not matter.
//
// Shards that may hold back are *attached*. A new peak detaches all, so that a load that grows from peak to peak pays for
// a mutex and not for a stop; a shard attaches again after a few central changes without a new peak.
//
// Locks: per-thread objects (per_thread.h) -> central -> shards -> entries. Shards are locked several at a time under central only.
// Below a shard's lock nothing else is taken: whoever holds it may be waited for by a stop of the ledger.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "account.h"
#include "gpuledger/ledger.h"
#include "per_thread.h"
#include "sync.h"

namespace gpuledger {

// One charge, in storage that the ledger walks to find the live ones. Written under the lock of an attached shard, or
// under central; read by whoever has stopped the ledger.
struct Charge::Entry {
  enum class State : uint8_t { kUnused, kInUse, kPending };

  Ledger::Impl* ledger = nullptr;
  Entry* next = nullptr;  // in a list of unused ones
  AllocationId id{0};
  Payer payer;
  Bytes requested, charged;
  Stream stream = Stream::Default(DeviceId{0});
  DevicePtr address = DevicePtr::Null(DeviceId{0});
  SiteId site = kNoSite;
  ThreadId thread{0};
  TimePoint time{0};
  uint64_t debit_epoch = 0;    // how many peaks there had been
  uint64_t pending_epoch = 0;  // if pending
  State state = State::kUnused;

  [[nodiscard]] LiveAllocation info() const {
    return {id, payer, requested, charged, stream, address, site, thread, time, state == State::kPending};
  }
};

// What the allocator keeps in a thread's shard, under its lock: it survives the thread, and goes to the next one.
class ShardExtension {
 public:
  virtual ~ShardExtension() = default;
};

// A soft cap that was crossed, and not yet told of.
struct Crossing {
  std::shared_ptr<const SoftCap> soft_cap;
  SoftCapCrossing what;
};

struct alignas(64) Ledger::Shard {
  static constexpr uint32_t kSlots = 128;
  static constexpr uint32_t kNobody = UINT32_MAX;

  // Changes held back of one account, and how much more may be charged to it: the budget is held.in_use + room.
  struct Line {
    Delta held;
    uint64_t room = 0;
  };
  // An owner of which this shard may hold back changes; the owner's own account is the sum of the lines.
  struct Slot {
    uint32_t owner = kNobody;
    OwnerAccounts* accounts = nullptr;
    uint64_t room = 0;
    std::array<Line, kRoleCount> roles;
  };

  SpinLock mutex;
  uint64_t room GPULEDGER_GUARDED_BY(mutex) = 0;                // of the device; its changes are the sum of `roles`
  std::array<Line, kRoleCount> roles GPULEDGER_GUARDED_BY(mutex);
  // By the low bits of the owner's id; one that matches nobody until the shard first attaches. Empty while it is detached.
  Slot* slots GPULEDGER_GUARDED_BY(mutex);
  uint32_t slot_mask GPULEDGER_GUARDED_BY(mutex) = 0;
  std::array<uint64_t, kSlots / 64> occupied GPULEDGER_GUARDED_BY(mutex) = {};
  std::unique_ptr<Slot[]> slot_storage GPULEDGER_GUARDED_BY(mutex);

  Charge::Entry* unused GPULEDGER_GUARDED_BY(mutex) = nullptr;
  uint32_t unused_count GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t next_id GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t end_of_ids GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t sequence GPULEDGER_GUARDED_BY(mutex) = 0;
  ThreadId thread GPULEDGER_GUARDED_BY(mutex){0};                // whose it is
  const bool late;                                               // of all threads that are over: never attaches
  bool abandoned GPULEDGER_GUARDED_BY(mutex) = false;
  bool attached GPULEDGER_GUARDED_BY(mutex) = false;
  uint32_t quiet_changes GPULEDGER_GUARDED_BY(mutex) = 0;        // central ones without a new peak
  std::vector<Crossing> crossings GPULEDGER_GUARDED_BY(mutex);   // Impl::Tell, once the lock is released
  std::unique_ptr<ShardExtension> extension GPULEDGER_GUARDED_BY(mutex);

  explicit Shard(PerThreadKind kind);
};

struct Ledger::Impl {
  Impl(DeviceId device_id, const Clock& its_clock, RecordSink* its_sink);

  const LedgerId id;
  const DeviceId device;
  const Clock& clock;
  RecordSink* const own_sink;  // null: DefaultRecordSink()

  // ---- for the allocator, which asks for its shard and the time once an operation ----

  // The shard of this thread. Call it with no lock held that is taken below the ledger's.
  Shard& MyShard() { return shards.Get(); }

  // These are Ledger::Debit, Charge::MakePending and Charge's death. They may release the shard's lock and take it again:
  // what the caller knows of the shard is then old. Nothing may be held that others take before a shard's lock and keep
  // while they go central. The sink is called under the shard's lock. After a Debit, look at `shard.crossings`.
  Charge::Entry* Debit(Shard& shard, const ChargeRequest& request, TimePoint now) GPULEDGER_REQUIRES(shard.mutex);
  void MakePending(Shard& shard, Charge::Entry* entry, TimePoint now) GPULEDGER_REQUIRES(shard.mutex);
  void Complete(Shard& shard, Charge::Entry* entry, TimePoint now) GPULEDGER_REQUIRES(shard.mutex);
  // Calls the callbacks of soft caps that this shard's thread crossed.
  void Tell(Shard& shard) GPULEDGER_EXCLUDES(shard.mutex, central);
  // Calls visit(Shard&, bool abandoned) with each shard, locked, one after the other.
  template <class Visit>
  void ForEachShard(Visit visit) GPULEDGER_EXCLUDES(central) {
    for (Shard* shard : shards.All()) {
      SpinHold hold(shard->mutex);
      visit(*shard, shard->abandoned);
    }
  }

  // ---- central ----

  // After so many central changes without a new peak a shard attaches: more where attaching did not last.
  static constexpr uint32_t kQuietChanges = 4, kMostQuietChanges = 1024;
  uint32_t quiet_needed GPULEDGER_GUARDED_BY(central) = kQuietChanges;
  size_t next_lender GPULEDGER_GUARDED_BY(central) = 0;

  mutable Mutex central;
  Account total;
  std::array<Account, kRoleCount> by_role;
  OwnerDirectory owners;
  std::atomic<uint64_t> epoch = 0;  // how many peaks of the device there were; changes only while the ledger is stopped
  std::vector<Shard*> attached GPULEDGER_GUARDED_BY(central);
  std::vector<Shard*> stopped GPULEDGER_GUARDED_BY(central);   // those that LockAttached locked
  uint64_t open_lineages GPULEDGER_GUARDED_BY(central) = 0;

  Account& AccountOf(OwnerAccounts& owner, Role role) GPULEDGER_REQUIRES(central);
  // device, owner, role, role of owner
  std::array<Account*, 4> AccountsOf(Payer payer) GPULEDGER_REQUIRES(central);
  void GoCentral(Shard& shard, Charge::Entry& entry, Charge::Entry::State to) GPULEDGER_REQUIRES(shard.mutex);
  void DebitCentrally(Shard& shard, Charge::Entry& entry) GPULEDGER_REQUIRES(central, shard.mutex);
  // Takes room that other shards do not use back into the headroom of the four accounts, until the entry fits: one shard
  // after the other, for budgets alone are moved, and nothing is said about what is in use.
  void Borrow(const Shard* mine, const Charge::Entry& entry, OwnerAccounts& owner) GPULEDGER_REQUIRES(central);
  void FreeCentrally(Shard& shard, Charge::Entry& entry, Charge::Entry::State to) GPULEDGER_REQUIRES(central, shard.mutex);
  void AttachIfQuiet(Shard& shard) GPULEDGER_REQUIRES(central, shard.mutex);
  // After it, call Tell.
  void Transfer(Shard& shard, Charge::Entry& entry, Payer to) GPULEDGER_EXCLUDES(shard.mutex, central);
  // Applies a change to the four accounts of a payer. True if a peak rose.
  bool Apply(Payer payer, const Delta& d) GPULEDGER_REQUIRES(central);
  // Whether the owner is above its soft cap now; a crossing goes to `crossings`.
  void NoteSoftCap(OwnerAccounts& owner, std::vector<Crossing>& crossings) GPULEDGER_REQUIRES(central);

  // ---- shards, as central sees them (ledger_shards.cc) ----

  void Attach(Shard& shard) GPULEDGER_REQUIRES(central, shard.mutex);
  void Detach(Shard& shard) GPULEDGER_REQUIRES(central, shard.mutex);  // Requires: it holds nothing
  void InstallSlot(Shard& shard, OwnerAccounts& owner) GPULEDGER_REQUIRES(central, shard.mutex);
  void DrainSlot(Shard& shard, Shard::Slot& slot) GPULEDGER_REQUIRES(central, shard.mutex);
  void EvictSlot(Shard& shard, Shard::Slot& slot) GPULEDGER_REQUIRES(central, shard.mutex);
  void DrainRoles(Shard& shard) GPULEDGER_REQUIRES(central, shard.mutex);
  // All that the shard held back is in the accounts; it keeps its budgets.
  void DrainAll(Shard& shard) GPULEDGER_REQUIRES(central, shard.mutex);
  // And it gives its budgets back.
  void Revoke(Shard& shard) GPULEDGER_REQUIRES(central, shard.mutex);
  // Takes the locks of all attached shards but `mine`, which is held.
  void LockAttached(const Shard* mine) GPULEDGER_REQUIRES(central);
  void UnlockAttached() GPULEDGER_REQUIRES(central);
  // With all of them locked.
  void RevokeAttached() GPULEDGER_REQUIRES(central);
  void DetachAll() GPULEDGER_REQUIRES(central);

  // ---- entries ----

  static constexpr uint32_t kEntryBatch = 128;
  static constexpr uint64_t kIdsLeased = 1024;
  using EntryBatch = std::array<Charge::Entry, kEntryBatch>;
  Mutex entries_mutex;
  std::vector<std::unique_ptr<EntryBatch>> entries GPULEDGER_GUARDED_BY(entries_mutex);  // storage only; never shrinks
  std::vector<Charge::Entry*> unused_batches GPULEDGER_GUARDED_BY(entries_mutex);        // lists of kEntryBatch each
  static inline std::atomic<uint64_t> next_ids = 1;  // of all ledgers: what is said of an id is said of one allocation

  void TakeEntries(Shard& shard) GPULEDGER_REQUIRES(shard.mutex);
  void GiveEntries(Shard& shard) GPULEDGER_REQUIRES(shard.mutex);
  // Calls `visit` with every live entry. Requires: the ledger is stopped.
  template <class Visit>
  void ForEachLive(Visit visit) GPULEDGER_REQUIRES(central) {
    MutexLock lock(entries_mutex);
    for (const auto& batch : entries) {
      for (Charge::Entry& entry : *batch) {
        if (entry.state != Charge::Entry::State::kUnused) visit(entry);
      }
    }
  }
  [[nodiscard]] bool LiveAtPeak(const Charge::Entry& entry) const GPULEDGER_REQUIRES(central);

  // ---- records ----

  static ThreadId ThreadOf(const Shard& shard) GPULEDGER_REQUIRES(shard.mutex) {
    return shard.late ? ThisThread() : shard.thread;
  }
  void Write(Shard& shard, RecordKind kind, const Charge::Entry& entry, TimePoint now) GPULEDGER_REQUIRES(shard.mutex);
  void WriteFree(Shard& shard, const Charge::Entry& entry, TimePoint now) GPULEDGER_REQUIRES(shard.mutex);
  [[gnu::always_inline]] inline Record RecordOf(Shard& shard, RecordKind kind, const Charge::Entry& entry, TimePoint now) const
      GPULEDGER_REQUIRES(shard.mutex);
  [[nodiscard]] RecordSink* sink() const { return own_sink != nullptr ? own_sink : DefaultRecordSink(); }
  LedgerMoment::Cut CutOf(Shard& shard) const GPULEDGER_REQUIRES(central);
  void WriteNote(Shard& shard, Record record, TimePoint now) GPULEDGER_REQUIRES(shard.mutex);

  // ---- reports; the ledger is stopped ----

  [[nodiscard]] Usage Read(const Account& account) const { return account.Read(Delta(), epoch); }
  [[nodiscard]] std::vector<OwnerUsage> ByOwner() GPULEDGER_REQUIRES(central);  // in no order
  Residual ResidualOf(const OwnerAccounts& owner) GPULEDGER_REQUIRES(central);
  absl::Status Check() GPULEDGER_REQUIRES(central);

  PerThread<Shard> shards;  // last: ends first, and with it all that exiting threads may do here
};

// Stops the ledger while it lives: every change that reached it before is in the accounts, none is on its way.
class GPULEDGER_SCOPED_CAPABILITY Stopped {
 public:
  enum class Budgets : uint8_t { kKeep, kRevoke };
  // `mine`: a shard to hold too, attached or not.
  [[nodiscard]] explicit Stopped(Ledger::Impl& ledger, Budgets budgets = Budgets::kKeep, Ledger::Shard* mine = nullptr)
      GPULEDGER_ACQUIRE(ledger.central);
  ~Stopped() GPULEDGER_RELEASE();
  Stopped(const Stopped&) = delete;
  Stopped& operator=(const Stopped&) = delete;

 private:
  Ledger::Impl& ledger_;
  Ledger::Shard* const mine_;
};

// Holds every shard, those too that hold nothing back, while it lives: what threads write under their shard's lock alone,
// as the allocator does a block's charge, can be read.
class [[nodiscard]] AllShardsHeld {
 public:
  explicit AllShardsHeld(Ledger& ledger) : ledger_(ledger) { ledger_.LockForFork(); }
  ~AllShardsHeld() { ledger_.UnlockAfterFork(); }
  AllShardsHeld(const AllShardsHeld&) = delete;
  AllShardsHeld& operator=(const AllShardsHeld&) = delete;

 private:
  Ledger& ledger_;
};

// The device and all its owners at one instant, largest in_use first.
struct LedgerCut {
  Usage device;
  std::vector<OwnerUsage> owners;

  explicit LedgerCut(Ledger::Impl& ledger);
};

}  // namespace gpuledger
