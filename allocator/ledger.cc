#include "gpuledger/ledger.h"

#include <atomic>

#include <fmt/format.h>

#include "hold_back.h"
#include "ledger_impl.h"

namespace gpuledger {

using State = Charge::Entry::State;

ThreadId ThisThread() {
  static std::atomic<uint32_t> next{1};
  thread_local const ThreadId id{next.fetch_add(1, std::memory_order_relaxed)};
  return id;
}

// ---- the hot path: a change that a thread may hold back ------------------------------------------------------------------

Charge::Entry* Ledger::Impl::Debit(Shard& shard, const ChargeRequest& request, TimePoint now) {
  if (request.charged.is_zero() || request.requested > request.charged) [[unlikely]] {
    Die("Ledger::Debit: charged must be at least requested, and more than nothing");
  }
  if (shard.unused == nullptr) [[unlikely]] TakeEntries(shard);
  if (shard.next_id == shard.end_of_ids) [[unlikely]] {
    shard.next_id = next_ids.fetch_add(kIdsLeased, std::memory_order_relaxed);
    shard.end_of_ids = shard.next_id + kIdsLeased;
  }
  Charge::Entry& entry = *shard.unused;
  shard.unused = entry.next;
  shard.unused_count -= 1;
  entry.id = AllocationId(shard.next_id++);
  entry.payer = request.payer;
  entry.requested = request.requested;
  entry.charged = request.charged;
  entry.stream = request.stream;
  entry.address = request.address;
  entry.site = request.site;
  entry.thread = ThreadOf(shard);
  entry.time = now;
  if (HoldBackDebit(shard, entry)) [[likely]] {
    entry.debit_epoch = epoch.load(std::memory_order_relaxed);
    entry.state = State::kInUse;
  } else {
    GoCentral(shard, entry, State::kInUse);
  }
  Write(shard, RecordKind::kAllocate, entry, now);
  return &entry;
}

void Ledger::Impl::MakePending(Shard& shard, Charge::Entry* entry, TimePoint now) {
  if (entry->state != State::kInUse) Die("Charge::MakePending: this charge is pending already");
  if (HoldBackFree(shard, *entry, State::kPending)) [[likely]] {
    entry->pending_epoch = epoch.load(std::memory_order_relaxed);
    entry->state = State::kPending;
  } else {
    GoCentral(shard, *entry, State::kPending);
  }
  Write(shard, RecordKind::kFreeRequested, *entry, now);
}

void Ledger::Impl::Complete(Shard& shard, Charge::Entry* entry, TimePoint now) {
  const bool was_in_use = entry->state == State::kInUse;
  if (HoldBackFree(shard, *entry, State::kUnused)) [[likely]] {
    entry->state = State::kUnused;
  } else {
    GoCentral(shard, *entry, State::kUnused);
  }
  if (was_in_use) {
    WriteFree(shard, *entry, now);
  } else {
    Write(shard, RecordKind::kFreeCompleted, *entry, now);
  }
  entry->next = shard.unused;
  shard.unused = entry;
  shard.unused_count += 1;
  if (shard.unused_count >= 3 * kEntryBatch) [[unlikely]] GiveEntries(shard);
}

// ---- records ---------------------------------------------------------------------------------------------------------

Record Ledger::Impl::RecordOf(Shard& shard, RecordKind kind, const Charge::Entry& entry, TimePoint now) const {
  Record record;
  record.sequence = shard.sequence;
  record.time = now;
  record.allocation = entry.id;
  record.address = entry.address.address();
  record.requested = entry.requested;
  record.charged = entry.charged;
  record.stream = entry.stream.raw();
  record.owner = entry.payer.owner;
  record.site = entry.site;
  record.thread = ThreadOf(shard);
  record.scope = entry.payer.scope;
  record.device = device;
  record.ledger = id;
  record.role = entry.payer.role;
  record.kind = kind;
  return record;
}

void Ledger::Impl::Write(Shard& shard, RecordKind kind, const Charge::Entry& entry, TimePoint now) {
  shard.sequence += 1;
  if (RecordSink* const to = sink()) to->Write(RecordOf(shard, kind, entry, now));
}

void Ledger::Impl::WriteFree(Shard& shard, const Charge::Entry& entry, TimePoint now) {
  RecordSink* const to = sink();
  shard.sequence += 1;
  if (to == nullptr) {
    shard.sequence += 1;
    return;
  }
  const Record requested = RecordOf(shard, RecordKind::kFreeRequested, entry, now);
  Record completed = requested;
  completed.sequence = shard.sequence += 1;
  completed.kind = RecordKind::kFreeCompleted;
  to->WriteFree(requested, completed);
}

void Ledger::Impl::WriteNote(Shard& shard, Record record, TimePoint now) {
  record.device = device;
  record.time = now;
  record.thread = ThreadOf(shard);
  record.sequence = ++shard.sequence;
  record.ledger = id;
  if (RecordSink* const to = sink()) to->Write(record);
}

LedgerMoment::Cut Ledger::Impl::CutOf(Shard& shard) const GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  if (shard.attached) return {shard.thread, shard.sequence};  // held already
  SpinHold hold(shard.mutex);
  return {shard.thread, shard.sequence};
}

void Ledger::Impl::Tell(Shard& shard) {
  std::vector<Crossing> crossings;
  {
    SpinHold hold(shard.mutex);
    crossings.swap(shard.crossings);
  }
  for (const Crossing& crossing : crossings) crossing.soft_cap->on_crossing(crossing.what);
}

// ---- the public face ---------------------------------------------------------------------------------------------------

Ledger::Ledger(DeviceId device, const Clock& clock, RecordSink* sink)
    : impl_(std::make_unique<Impl>(device, clock, sink)) {}

Ledger::~Ledger() {
  const std::vector<LiveAllocation> left = live();
  if (left.empty()) return;
  Die(fmt::format("the ledger of device {} ends while {} charge(s) live; the first is {}, owner {} [{}]", device().value(),
                  left.size(), ToString(left[0].charged), OwnerName(left[0].payer.owner), RoleName(left[0].payer.role)));
}

DeviceId Ledger::device() const { return impl_->device; }

Charge Ledger::Debit(const ChargeRequest& request) {
  Impl& l = *impl_;
  Shard& shard = l.MyShard();
  const TimePoint now = l.clock.now();
  Charge::Entry* entry = nullptr;
  bool crossed = false;
  {
    SpinHold hold(shard.mutex);
    entry = l.Debit(shard, request, now);
    crossed = !shard.crossings.empty();
  }
  if (crossed) [[unlikely]] l.Tell(shard);
  return Charge(entry);
}

void Charge::MakePending() {
  Ledger::Impl& l = *entry_->ledger;
  Ledger::Shard& shard = l.MyShard();
  const TimePoint now = l.clock.now();
  SpinHold hold(shard.mutex);
  l.MakePending(shard, entry_, now);
}

void Charge::Complete() noexcept {
  Ledger::Impl& l = *entry_->ledger;
  Ledger::Shard& shard = l.MyShard();
  const TimePoint now = l.clock.now();
  SpinHold hold(shard.mutex);
  l.Complete(shard, entry_, now);
}

LiveAllocation Charge::info() const {
  MutexLock lock(entry_->ledger->central);  // keeps a Transfer away
  return entry_->info();
}

void Ledger::Transfer(const Charge& charge, Payer to) {
  Impl& l = *impl_;
  Charge::Entry& entry = *charge.entry_;
  if (entry.ledger != &l) Die("Ledger::Transfer: the charge belongs to another ledger");
  Shard& shard = l.MyShard();
  l.Transfer(shard, entry, to);
  l.Tell(shard);
}

void Ledger::Note(Record record) {
  Shard& shard = impl_->MyShard();
  const TimePoint now = impl_->clock.now();
  SpinHold hold(shard.mutex);
  impl_->WriteNote(shard, record, now);
}

}  // namespace gpuledger
