// Shards as the central ledger sees them: attaching, draining and stopping them; threads that come, go, or were left in
// another process.
#include <bit>
#include <utility>

#include "ledger_impl.h"

namespace gpuledger {
namespace {

// What a shard has before it first attaches: matches no owner, so it is never written.
Ledger::Shard::Slot nobodys_slot;

}  // namespace

Ledger::Shard::Shard(PerThreadKind kind)
    : slots(&nobodys_slot),
      sequence(kind == PerThreadKind::kLate ? uint64_t{1} << 63 : 0),  // above all that the same threads used before
      thread(kind == PerThreadKind::kLate ? ThreadId(0) : ThisThread()),
      late(kind == PerThreadKind::kLate) {}

Ledger::Impl::Impl(DeviceId device_id, const Clock& its_clock, RecordSink* its_sink)
    : id([] {
        static std::atomic<uint32_t> next{1};
        return LedgerId(next.fetch_add(1, std::memory_order_relaxed));
      }()),
      device(device_id),
      clock(its_clock),
      own_sink(its_sink),
      shards({
          .make = [](PerThreadKind kind) { return std::make_shared<Shard>(kind); },
          .abandon =
              [this](Shard& shard) {
                MutexLock lock(central);
                SpinHold hold(shard.mutex);
                if (shard.attached) {
                  Revoke(shard);
                  Detach(shard);
                }
                shard.abandoned = true;
              },
          .adopt =
              [](Shard& shard) {
                SpinHold hold(shard.mutex);
                shard.abandoned = false;
                shard.thread = ThisThread();
                shard.quiet_changes = 0;
              },
      }) {}

void Ledger::Impl::Attach(Shard& shard) {
  if (shard.slot_storage == nullptr) {
    shard.slot_storage = std::make_unique<Shard::Slot[]>(Shard::kSlots);
    shard.slots = shard.slot_storage.get();
    shard.slot_mask = Shard::kSlots - 1;
  }
  shard.attached = true;
  attached.push_back(&shard);
}

void Ledger::Impl::Detach(Shard& shard) {
  shard.attached = false;
  shard.quiet_changes = 0;
  std::erase(attached, &shard);
}

void Ledger::Impl::InstallSlot(Shard& shard, OwnerAccounts& owner) {
  const uint32_t index = owner.id.value() & shard.slot_mask;
  Shard::Slot& slot = shard.slots[index];
  if (slot.owner == owner.id.value()) return;
  if (slot.owner != Shard::kNobody) EvictSlot(shard, slot);
  slot.owner = owner.id.value();
  slot.accounts = &owner;
  owner.holders += 1;
  shard.occupied[index / 64] |= uint64_t{1} << index % 64;
}

void Ledger::Impl::DrainSlot(Shard&, Shard::Slot& slot) {
  const uint64_t now = epoch.load(std::memory_order_relaxed);
  Delta sum;
  for (size_t role = 0; role < kRoleCount; ++role) {
    Delta& held = slot.roles[role].held;
    if (held.is_zero()) continue;
    AccountOf(*slot.accounts, static_cast<Role>(role)).Drain(held, now);
    sum += held;
    held = {};
  }
  if (!sum.is_zero()) slot.accounts->total.Drain(sum, now);
}

void Ledger::Impl::EvictSlot(Shard& shard, Shard::Slot& slot) {
  DrainSlot(shard, slot);
  for (size_t role = 0; role < kRoleCount; ++role) {
    const uint64_t room = std::exchange(slot.roles[role].room, 0);
    if (room != 0) AccountOf(*slot.accounts, static_cast<Role>(role)).Return(room);
  }
  slot.accounts->total.Return(std::exchange(slot.room, 0));
  slot.accounts->holders -= 1;
  slot.owner = Shard::kNobody;
  slot.accounts = nullptr;
  const size_t index = static_cast<size_t>(&slot - shard.slots);
  shard.occupied[index / 64] &= ~(uint64_t{1} << index % 64);
}

void Ledger::Impl::DrainRoles(Shard& shard) {
  const uint64_t now = epoch.load(std::memory_order_relaxed);
  Delta sum;
  for (size_t role = 0; role < kRoleCount; ++role) {
    Delta& held = shard.roles[role].held;
    if (held.is_zero()) continue;
    by_role[role].Drain(held, now);
    sum += held;
    held = {};
  }
  if (!sum.is_zero()) total.Drain(sum, now);
}

namespace {

template <class Visit>
void ForEachSlot(Ledger::Shard& shard, Visit visit) GPULEDGER_REQUIRES(shard.mutex) {
  for (size_t word = 0; word < shard.occupied.size(); ++word) {
    for (uint64_t left = shard.occupied[word]; left != 0; left &= left - 1) {
      visit(shard.slots[word * 64 + static_cast<size_t>(std::countr_zero(left))]);
    }
  }
}

}  // namespace

void Ledger::Impl::DrainAll(Shard& shard) {
  DrainRoles(shard);
  ForEachSlot(shard, [&](Shard::Slot& slot) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { DrainSlot(shard, slot); });
}

void Ledger::Impl::Revoke(Shard& shard) {
  DrainRoles(shard);
  total.Return(std::exchange(shard.room, 0));
  for (size_t role = 0; role < kRoleCount; ++role) by_role[role].Return(std::exchange(shard.roles[role].room, 0));
  ForEachSlot(shard, [&](Shard::Slot& slot) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS { EvictSlot(shard, slot); });
}

void Ledger::Impl::LockAttached(const Shard* mine) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  stopped.clear();
  for (Shard* shard : attached) {
    if (shard == mine) continue;
    shard->mutex.Lock();
    stopped.push_back(shard);
  }
}

void Ledger::Impl::UnlockAttached() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  for (Shard* shard : stopped) shard->mutex.Unlock();
  stopped.clear();
}

void Ledger::Impl::RevokeAttached() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  for (Shard* shard : attached) Revoke(*shard);
}

void Ledger::Impl::DetachAll() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  while (!attached.empty()) Detach(*attached.back());
}

Stopped::Stopped(Ledger::Impl& ledger, Budgets budgets, Ledger::Shard* mine) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS
    : ledger_(ledger), mine_(mine) {
  ledger_.central.Lock();
  if (mine_ != nullptr) mine_->mutex.Lock();
  ledger_.LockAttached(mine_);
  if (budgets == Budgets::kRevoke) {
    ledger_.RevokeAttached();
  } else {
    for (Ledger::Shard* shard : ledger_.attached) ledger_.DrainAll(*shard);
  }
}

Stopped::~Stopped() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  ledger_.UnlockAttached();
  if (mine_ != nullptr) mine_->mutex.Unlock();
  ledger_.central.Unlock();
}

// ---- entries -------------------------------------------------------------------------------------------------------

void Ledger::Impl::TakeEntries(Shard& shard) {
  MutexLock lock(entries_mutex);
  if (unused_batches.empty()) {
    EntryBatch& batch = *entries.emplace_back(std::make_unique<EntryBatch>());
    for (Charge::Entry& entry : batch) entry.ledger = this;
    for (size_t i = 0; i + 1 < batch.size(); ++i) batch[i].next = &batch[i + 1];
    shard.unused = batch.data();
  } else {
    shard.unused = unused_batches.back();
    unused_batches.pop_back();
  }
  shard.unused_count = kEntryBatch;
}

void Ledger::Impl::GiveEntries(Shard& shard) {
  Charge::Entry* const first = shard.unused;
  Charge::Entry* last = first;
  for (size_t i = 1; i < kEntryBatch; ++i) last = last->next;
  shard.unused = last->next;
  shard.unused_count -= kEntryBatch;
  last->next = nullptr;
  MutexLock lock(entries_mutex);
  unused_batches.push_back(first);
}

// ---- around fork -----------------------------------------------------------------------------------------------------

void Ledger::LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  const std::vector<Shard*> all = impl_->shards.LockForFork();
  impl_->central.Lock();
  for (Shard* shard : all) shard->mutex.Lock();
  impl_->entries_mutex.Lock();
}

void Ledger::UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  impl_->entries_mutex.Unlock();
  for (Shard* shard : impl_->shards.AllWhileLocked()) shard->mutex.Unlock();
  impl_->central.Unlock();
  impl_->shards.UnlockAfterFork();
}

void Ledger::ForgetOtherThreads() { impl_->shards.AbandonOtherThreads(); }

}  // namespace gpuledger
