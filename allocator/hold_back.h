// allocator/hold_back.h - the changes that a shard keeps to itself: the hot path of the ledger. False, and nothing done,
// where it cannot: it is detached, has no slot for the owner, or has too little room.
#pragma once

#include <cstddef>
#include <cstring>

#include "ledger_impl.h"

namespace gpuledger {

// Two neighbouring numbers of a Delta at once: the ledger's hot path is bound by how many stores it makes.
using Two = uint64_t __attribute__((vector_size(16)));
inline void AddTwo(uint64_t& first, Two change) {
  Two sum;
  std::memcpy(&sum, &first, sizeof sum);
  sum += change;
  std::memcpy(&first, &sum, sizeof sum);
}
static_assert(offsetof(Delta, requested) == offsetof(Delta, in_use) + 8 && offsetof(Delta, charged_ever) == offsetof(Delta, count) + 8 &&
              offsetof(Delta, pending_count) == offsetof(Delta, pending) + 8);

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
    AddTwo(l->held.in_use, Two{charged, requested});
    AddTwo(l->held.count, Two{1, charged});
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
  const std::array<Ledger::Shard::Line*, 2> lines = {&slot.roles[r], &shard.roles[r]};
  if (was_in_use) [[likely]] {
    shard.room += charged;
    slot.room += charged;
    for (Ledger::Shard::Line* l : lines) {
      l->room += charged;
      AddTwo(l->held.in_use, Two{0 - charged, 0 - requested});
      l->held.count -= 1;
    }
  } else {
    for (Ledger::Shard::Line* l : lines) AddTwo(l->held.pending, Two{0 - charged, uint64_t{0} - 1});
  }
  if (to == Charge::Entry::State::kPending) {
    for (Ledger::Shard::Line* l : lines) AddTwo(l->held.pending, Two{charged, 1});
  }
  return true;
}

}  // namespace gpuledger
