// What a shard cannot do on its own: changes of the accounts themselves, one at a time, and all that stops the ledger.
#include <algorithm>
#include <utility>

#include "hold_back.h"
#include "ledger_impl.h"

namespace gpuledger {

using State = Charge::Entry::State;

void Ledger::Impl::GoCentral(Shard& shard, Charge::Entry& entry, State to) {
  shard.mutex.Unlock();
  MutexLock lock(central);
  shard.mutex.Lock();
  if (to == State::kInUse) {
    DebitCentrally(shard, entry);
  } else {
    FreeCentrally(shard, entry, to);
  }
}

void Ledger::Impl::DebitCentrally(Shard& shard, Charge::Entry& entry) {
  OwnerAccounts& owner = owners.FindOrMake(entry.payer.owner);
  Account& role = by_role[static_cast<size_t>(entry.payer.role)];
  Account& line = AccountOf(owner, entry.payer.role);
  if (shard.attached) {  // what this shard has of the four accounts goes back first
    Shard::Slot& slot = shard.slots[entry.payer.owner.value() & shard.slot_mask];
    if (slot.owner == entry.payer.owner.value()) EvictSlot(shard, slot);
    DrainRoles(shard);
    role.Return(std::exchange(shard.roles[static_cast<size_t>(entry.payer.role)].room, 0));
    total.Return(std::exchange(shard.room, 0));
  }

  const uint64_t charged = entry.charged.count();
  const auto fits = [charged](const Account& account) { return account.headroom() >= charged; };
  const bool others = attached.size() > (shard.attached ? 1u : 0u);
  const auto must_stop = [&] {
    return !fits(total) || (!fits(role) && others) || (!(fits(owner.total) && fits(line)) && owner.holders != 0);
  };
  if (must_stop() && others) Borrow(&shard, entry, owner);
  const bool stop = must_stop();
  bool tight = false;
  if (stop) {
    LockAttached(&shard);
    RevokeAttached();
    // So little is left below a peak that every thread would soon be here again: they had better go central in turn.
    const uint64_t least = std::min({total.headroom(), role.headroom(), owner.total.headroom(), line.headroom()});
    tight = others && least / (4 * attached.size()) < charged;
  }

  if (shard.attached && !tight && !owner.above_soft_cap && fits(total) && fits(role) && fits(owner.total) && fits(line)) {
    InstallSlot(shard, owner);
    const auto r = static_cast<size_t>(entry.payer.role);
    Shard::Slot& slot = shard.slots[entry.payer.owner.value() & shard.slot_mask];
    shard.room += total.Grant(charged);
    slot.room += owner.total.Grant(charged);
    shard.roles[r].room += role.Grant(charged);
    slot.roles[r].room += line.Grant(charged);
    if (!HoldBackDebit(shard, entry)) Die("the ledger: a grant too small for its charge");
    entry.debit_epoch = epoch.load(std::memory_order_relaxed);
  } else {
    if (stop) static_cast<void>(Bytes(total.in_use()) + entry.charged);  // fatal if it overflows
    const uint64_t peak = total.peak();
    const bool rose = Apply(entry.payer, Delta::OfDebit(entry.charged, entry.requested));
    entry.debit_epoch = epoch.load(std::memory_order_relaxed);
    if (total.peak() != peak) epoch.store(entry.debit_epoch + 1, std::memory_order_release);
    NoteSoftCap(owner, shard.crossings);
    if (stop && (rose || tight)) DetachAll();
    if (tight && !rose) quiet_needed = std::min(quiet_needed * 2, kMostQuietChanges);
    shard.quiet_changes = rose ? 0 : shard.quiet_changes + 1;
    AttachIfQuiet(shard);
  }
  entry.state = State::kInUse;
  if (stop) UnlockAttached();
}

void Ledger::Impl::FreeCentrally(Shard& shard, Charge::Entry& entry, State to) {
  OwnerAccounts& owner = owners.FindOrMake(entry.payer.owner);
  if (shard.attached && !owner.above_soft_cap) {
    InstallSlot(shard, owner);
    HoldBackFree(shard, entry, to);
  } else {
    const bool pends = to == State::kPending;
    Apply(entry.payer, entry.state == State::kPending ? Delta::OfCompletion(entry.charged)
                                                      : Delta::OfFree(entry.charged, entry.requested, pends));
    NoteSoftCap(owner, shard.crossings);
    shard.quiet_changes += 1;
    AttachIfQuiet(shard);
  }
  if (to == State::kPending) entry.pending_epoch = epoch.load(std::memory_order_relaxed);
  entry.state = to;
}

void Ledger::Impl::AttachIfQuiet(Shard& shard) {
  if (shard.attached || shard.late || shard.quiet_changes < quiet_needed) return;
  Attach(shard);
  quiet_needed = std::max(quiet_needed - quiet_needed / 8, kQuietChanges);
}

void Ledger::Impl::Borrow(const Shard* mine, const Charge::Entry& entry, OwnerAccounts& owner) {
  const uint64_t charged = entry.charged.count();
  const auto r = static_cast<size_t>(entry.payer.role);
  const auto take = [charged](Account& account, uint64_t& room) {
    const uint64_t headroom = account.headroom();
    if (headroom >= charged) return;
    const uint64_t taken = std::min(room, std::max(charged - headroom, room / 2));
    room -= taken;
    account.Return(taken);
  };
  Account& line = AccountOf(owner, entry.payer.role);
  for (size_t asked = 0; asked < attached.size(); ++asked) {
    Shard& lender = *attached[next_lender++ % attached.size()];
    if (&lender == mine) continue;
    SpinHold hold(lender.mutex);
    take(total, lender.room);
    take(by_role[r], lender.roles[r].room);
    Shard::Slot& slot = lender.slots[entry.payer.owner.value() & lender.slot_mask];
    if (slot.owner == entry.payer.owner.value()) {
      take(owner.total, slot.room);
      take(line, slot.roles[r].room);
    }
    if (std::min({total.headroom(), by_role[r].headroom(), owner.total.headroom(), line.headroom()}) >= charged) return;
  }
}

Account& Ledger::Impl::AccountOf(OwnerAccounts& owner, Role role) {
  std::atomic<Account*>& account = owner.roles[static_cast<size_t>(role)];
  if (account.load(std::memory_order_relaxed) == nullptr) account.store(new Account, std::memory_order_release);
  return *account.load(std::memory_order_relaxed);
}

std::array<Account*, 4> Ledger::Impl::AccountsOf(Payer payer) {
  OwnerAccounts& owner = owners.FindOrMake(payer.owner);
  return {&total, &owner.total, &by_role[static_cast<size_t>(payer.role)], &AccountOf(owner, payer.role)};
}

bool Ledger::Impl::Apply(Payer payer, const Delta& d) {
  bool rose = false;
  for (Account* account : AccountsOf(payer)) rose |= account->Change(d, epoch.load(std::memory_order_relaxed));
  return rose;
}

void Ledger::Impl::NoteSoftCap(OwnerAccounts& owner, std::vector<Crossing>& crossings) {
  if (owner.soft_cap == nullptr) return;
  const Bytes cap = owner.soft_cap->cap;
  const Bytes reach(owner.total.in_use() + owner.total.granted());  // more than the cap only if nothing is granted
  const bool above = reach > cap;
  if (above == owner.above_soft_cap) return;
  owner.above_soft_cap = above;
  owner.total.set_soft_limit(above ? UINT64_MAX : cap.count());
  if (above) crossings.push_back({owner.soft_cap, {owner.id, cap, reach}});
}

bool Ledger::Impl::LiveAtPeak(const Charge::Entry& entry) const {
  const uint64_t now = epoch.load(std::memory_order_relaxed);
  return entry.debit_epoch < now && (entry.state == State::kInUse || entry.pending_epoch >= now);
}

// ---- with the ledger stopped -----------------------------------------------------------------------------------------

// The analysis does not see that the shard is held too.
void Ledger::Impl::Transfer(Charge::Entry& entry, Payer to) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  Shard& shard = MyShard();
  const TimePoint now = clock.now();
  {
    Stopped stopped_now(*this, Stopped::Budgets::kRevoke, &shard);
    const uint64_t at = epoch.load(std::memory_order_relaxed);
    const uint64_t charged = entry.charged.count();
    const bool live_at_peak = LiveAtPeak(entry);
    const Delta taken = entry.state == State::kPending ? Delta::OfCompletion(entry.charged)
                                                 : Delta::OfFree(entry.charged, entry.requested, false);
    const Delta given{.in_use = 0 - taken.in_use,
                      .requested = 0 - taken.requested,
                      .count = 0 - taken.count,
                      .charged_ever = charged,
                      .pending = 0 - taken.pending,
                      .pending_count = 0 - taken.pending_count};
    const std::array<Account*, 4> from = AccountsOf(entry.payer), into = AccountsOf(to);
    for (size_t i = 0; i < from.size(); ++i) {
      if (from[i] == into[i]) continue;  // the device's, and the role's or owner's that stays
      if (live_at_peak) {
        from[i]->MoveSaved(0 - charged, at);
        into[i]->MoveSaved(charged, at);
      }
      from[i]->Change(taken, at);
      into[i]->Change(given, at);
    }
    NoteSoftCap(owners.FindOrMake(entry.payer.owner), shard.crossings);
    NoteSoftCap(owners.FindOrMake(to.owner), shard.crossings);
    entry.payer = to;
    Write(shard, RecordKind::kTransfer, entry, now);
  }
  Tell(shard);
}

void Ledger::ResetPeak() {
  Impl& l = *impl_;
  Stopped stopped(l, Stopped::Budgets::kRevoke);
  l.total.ResetPeak();
  for (Account& account : l.by_role) account.ResetPeak();
  l.owners.ForEach([](OwnerAccounts& owner) {
    owner.total.ResetPeak();
    for (auto& slot : owner.roles) {
      if (Account* account = slot.load(std::memory_order_relaxed); account != nullptr) account->ResetPeak();
    }
  });
  l.epoch.fetch_add(1, std::memory_order_release);
}

void Ledger::Flush() const { Stopped stopped(*impl_); }

void Ledger::set_soft_cap(OwnerId owner, Bytes cap, std::function<void(const SoftCapCrossing&)> on_crossing) {
  Impl& l = *impl_;
  Stopped stopped(l, Stopped::Budgets::kRevoke);
  OwnerAccounts& accounts = l.owners.FindOrMake(owner);
  if (on_crossing == nullptr) {
    accounts.soft_cap = nullptr;
    accounts.above_soft_cap = false;
  } else {
    accounts.soft_cap = std::make_shared<const SoftCap>(SoftCap{cap, std::move(on_crossing)});
    accounts.above_soft_cap = Bytes(accounts.total.in_use()) > cap;
  }
  const bool armed = accounts.soft_cap != nullptr && !accounts.above_soft_cap;
  accounts.total.set_soft_limit(armed ? cap.count() : UINT64_MAX);
}

}  // namespace gpuledger
