#include "gpuledger/ledger.h"

#include <algorithm>
#include <atomic>

#include <fmt/format.h>

#include "ledger_impl.h"

namespace gpuledger {

ThreadId ThisThread() {
  static std::atomic<uint32_t> next{1};
  thread_local const ThreadId id{next.fetch_add(1, std::memory_order_relaxed)};
  return id;
}

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
  if (request.charged.is_zero() || request.requested > request.charged) {
    Die("Ledger::Debit: charged must be at least requested, and more than nothing");
  }
  const TimePoint now = impl_->clock.now();
  const ThreadId thread = ThisThread();

  Impl& l = *impl_;
  MutexLock lock(l.mutex);
  if (l.unused == nullptr) l.unused = &l.entries.emplace_back();
  Charge::Entry& entry = *l.unused;
  l.unused = entry.next;
  entry = Charge::Entry{};
  entry.ledger = &l;
  entry.id = AllocationId(l.next_allocation++);
  entry.payer = request.payer;
  entry.requested = request.requested;
  entry.charged = request.charged;
  entry.stream = request.stream;
  entry.address = request.address;
  entry.site = request.site;
  entry.thread = thread;
  entry.time = now;
  l.Link(entry);
  for (Account* account : l.Touch(entry.payer)) {
    account->in_use += entry.charged;
    account->requested += entry.requested;
    account->charged_ever += entry.charged;
    account->count += 1;
    if (account != &l.total) account->peak = std::max(account->peak, account->in_use);
  }
  entry.debit_sequence = l.Write(RecordKind::kAllocate, entry, now, thread);
  if (l.total.in_use > l.total.peak) {
    l.total.peak = l.total.in_use;
    l.peak_sequence = entry.debit_sequence;
    l.epoch += 1;
  }
  return Charge(&entry);
}

void Charge::MakePending() {
  Ledger::Impl& l = *entry_->ledger;
  const TimePoint now = l.clock.now();
  const ThreadId thread = ThisThread();
  MutexLock lock(l.mutex);
  if (entry_->pending()) Die("Charge::MakePending: this charge is pending already");
  for (Account* account : l.Touch(entry_->payer)) {
    account->in_use -= entry_->charged;
    account->requested -= entry_->requested;
    account->count -= 1;
    account->pending += entry_->charged;
    account->pending_count += 1;
  }
  entry_->pending_sequence = l.Write(RecordKind::kFreeRequested, *entry_, now, thread);
}

void Charge::Complete() noexcept {
  Ledger::Impl& l = *entry_->ledger;
  const TimePoint now = l.clock.now();
  const ThreadId thread = ThisThread();
  MutexLock lock(l.mutex);
  const bool was_pending = entry_->pending();
  for (Account* account : l.Touch(entry_->payer)) {
    if (was_pending) {
      account->pending -= entry_->charged;
      account->pending_count -= 1;
    } else {
      account->in_use -= entry_->charged;
      account->requested -= entry_->requested;
      account->count -= 1;
    }
  }
  if (!was_pending) l.Write(RecordKind::kFreeRequested, *entry_, now, thread);
  l.Write(RecordKind::kFreeCompleted, *entry_, now, thread);
  l.Unlink(*entry_);
  entry_->next = l.unused;
  l.unused = entry_;
}

LiveAllocation Charge::info() const {
  MutexLock lock(entry_->ledger->mutex);
  return entry_->info();
}

void Ledger::Transfer(const Charge& charge, Payer to) {
  Impl& l = *impl_;
  Charge::Entry& entry = *charge.entry_;
  if (entry.ledger != &l) Die("Ledger::Transfer: the charge belongs to another ledger");
  const TimePoint now = l.clock.now();
  const ThreadId thread = ThisThread();
  MutexLock lock(l.mutex);
  const bool live_at_peak = l.LiveAtPeak(entry);
  const bool pending = entry.pending();
  const std::array<Account*, 4> old_accounts = l.Touch(entry.payer);
  const std::array<Account*, 4> new_accounts = l.Touch(to);
  for (size_t i = 0; i < old_accounts.size(); ++i) {
    Account& from = *old_accounts[i];
    Account& into = *new_accounts[i];
    if (&from == &into) continue;  // the device's, and the role's or owner's that stays
    if (live_at_peak) {
      from.saved -= entry.charged;
      into.saved += entry.charged;
    }
    into.charged_ever += entry.charged;
    if (pending) {
      from.pending -= entry.charged, into.pending += entry.charged;
      from.pending_count -= 1, into.pending_count += 1;
    } else {
      from.in_use -= entry.charged, into.in_use += entry.charged;
      from.requested -= entry.requested, into.requested += entry.requested;
      from.count -= 1, into.count += 1;
      into.peak = std::max(into.peak, into.in_use);
    }
  }
  l.Unlink(entry);
  entry.payer = to;
  l.Link(entry);
  l.Write(RecordKind::kTransfer, entry, now, thread);
}

void Ledger::ResetPeak() {
  Impl& l = *impl_;
  MutexLock lock(l.mutex);
  const auto reset = [](Account& account) { account.peak = account.in_use; };
  reset(l.total);
  for (Account& account : l.by_role) reset(account);
  for (auto& owner : l.owners) {
    if (owner == nullptr) continue;
    reset(owner->total);
    for (auto& account : owner->roles) {
      if (account != nullptr) reset(*account);
    }
  }
  l.epoch += 1;
  l.peak_sequence = l.sequence;
}

void Ledger::Note(Record record) {
  record.time = impl_->clock.now();
  record.thread = ThisThread();
  MutexLock lock(impl_->mutex);
  impl_->WriteNote(record);
}

void Ledger::Impl::WriteNote(Record record) {
  record.device = device;
  record.sequence = ++sequence;
  if (sink != nullptr) sink->Write(record);
}

void Ledger::LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { impl_->mutex.Lock(); }
void Ledger::UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { impl_->mutex.Unlock(); }

// ---- the data behind it ------------------------------------------------------------------------------------------

OwnerAccounts& Ledger::Impl::OwnerOf(OwnerId owner) {
  if (owner.value() >= owners.size()) owners.resize(owner.value() + 1);
  std::unique_ptr<OwnerAccounts>& accounts = owners[owner.value()];
  if (accounts == nullptr) accounts = std::make_unique<OwnerAccounts>();
  return *accounts;
}

const OwnerAccounts* Ledger::Impl::FindOwner(OwnerId owner) const {
  return owner.value() < owners.size() ? owners[owner.value()].get() : nullptr;
}

Account& Ledger::Impl::AccountOf(OwnerAccounts& owner, Role role) {
  std::unique_ptr<Account>& account = owner.roles[static_cast<size_t>(role)];
  if (account == nullptr) account = std::make_unique<Account>();
  return *account;
}

std::array<Account*, 4> Ledger::Impl::Touch(Payer payer) {
  OwnerAccounts& owner = OwnerOf(payer.owner);
  const std::array<Account*, 4> accounts = {&total, &owner.total, &by_role[static_cast<size_t>(payer.role)],
                                            &AccountOf(owner, payer.role)};
  for (Account* account : accounts) account->Touch(epoch);
  return accounts;
}

bool Ledger::Impl::LiveAtPeak(const Charge::Entry& entry) const {
  return entry.debit_sequence <= peak_sequence && entry.pending_sequence > peak_sequence;
}

void Ledger::Impl::Link(Charge::Entry& entry) {
  OwnerAccounts& owner = OwnerOf(entry.payer.owner);
  entry.previous = owner.last;
  entry.next = nullptr;
  (owner.last == nullptr ? owner.first : owner.last->next) = &entry;
  owner.last = &entry;
}

void Ledger::Impl::Unlink(Charge::Entry& entry) {
  OwnerAccounts& owner = OwnerOf(entry.payer.owner);
  (entry.previous == nullptr ? owner.first : entry.previous->next) = entry.next;
  (entry.next == nullptr ? owner.last : entry.next->previous) = entry.previous;
}

uint64_t Ledger::Impl::Write(RecordKind kind, const Charge::Entry& entry, TimePoint time, ThreadId thread) {
  const uint64_t number = ++sequence;
  if (sink == nullptr) return number;
  Record record;
  record.sequence = number;
  record.time = time;
  record.allocation = entry.id;
  record.address = entry.address.address();
  record.requested = entry.requested;
  record.charged = entry.charged;
  record.stream = entry.stream.raw();
  record.owner = entry.payer.owner;
  record.site = entry.site;
  record.thread = thread;
  record.device = device;
  record.role = entry.payer.role;
  record.kind = kind;
  sink->Write(record);
  return number;
}

}  // namespace gpuledger
