// allocator/hold_back.h - the changes that a shard keeps to itself: the hot path of the ledger. False, and nothing done,
// where it cannot: it is detached, has no slot for the owner, or has too little room.
#pragma once

#include "ledger_impl.h"

namespace gpuledger {

// Debits if there is room in all four budgets.
inline bool HoldBackDebit(Ledger::Shard& shard, const Charge::Entry& entry) GPULEDGER_REQUIRES(shard.mutex) {
  const uint32_t owner = entry.payer.owner.value();
  Ledger::Shard::Slot& slot = shard.slots[owner & shard.slot_mask];
  if (slot.owner != owner) return false;
  const auto r = static_cast<size_t>(entry.payer.role);
  Ledger::Shard::Line& line = slot.roles[r];
  Ledger::Shard::Line& role = shard.roles[r];
  const uint64_t charged = entry.charged.count(), requested = entry.requested.count();
  if (line.room < charged || slot.room < charged || role.room < charged || shard.room < charged) return false;
  shard.room -= charged;
  slot.room -= charged;
  for (Ledger::Shard::Line* l : {&line, &role}) {
    l->room -= charged;
    l->held.in_use += charged;
    l->held.requested += requested;
    l->held.charged_ever += charged;
    l->held.count += 1;
  }
  return true;
}

// Credits: always held back, and room for later.
inline bool HoldBackFree(Ledger::Shard& shard, const Charge::Entry& entry, Charge::Entry::State to) GPULEDGER_REQUIRES(shard.mutex) {
  const uint32_t owner = entry.payer.owner.value();
  Ledger::Shard::Slot& slot = shard.slots[owner & shard.slot_mask];
  if (slot.owner != owner) return false;
  const auto r = static_cast<size_t>(entry.payer.role);
  const uint64_t charged = entry.charged.count(), requested = entry.requested.count();
  const bool was_in_use = entry.state == Charge::Entry::State::kInUse;
  if (was_in_use) {
    shard.room += charged;
    slot.room += charged;
  }
  for (Ledger::Shard::Line* l : {&slot.roles[r], &shard.roles[r]}) {
    if (was_in_use) {
      l->room += charged;
      l->held.in_use -= charged;
      l->held.requested -= requested;
      l->held.count -= 1;
    } else {
      l->held.pending -= charged;
      l->held.pending_count -= 1;
    }
    if (to == Charge::Entry::State::kPending) {
      l->held.pending += charged;
      l->held.pending_count += 1;
    }
  }
  return true;
}

}  // namespace gpuledger
