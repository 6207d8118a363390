// The ledger's equations, recomputed from the live charges.
#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "ledger_impl.h"

namespace gpuledger {
namespace {

using OwnerAndRole = std::pair<uint32_t, size_t>;

void Add(const Charge::Entry& e, Delta& sum) {
  if (e.state == Charge::Entry::State::kPending) {
    sum += {.pending = e.charged.count(), .pending_count = 1};
  } else {
    sum += {.in_use = e.charged.count(), .requested = e.requested.count(), .count = 1};
  }
}

// `what` names an account that holds `a`; `live` is what the live charges say it must hold.
absl::Status Compare(std::string_view what, const Usage& a, const Delta& live) {
  if (a.in_use.count() == live.in_use && a.requested.count() == live.requested && a.pending.count() == live.pending &&
      a.count == live.count && a.pending_count == live.pending_count && a.requested <= a.in_use && a.in_use <= a.peak) {
    return absl::OkStatus();
  }
  return absl::InternalError(fmt::format(
      "ledger: {} holds in_use {}, requested {}, pending {}, peak {}; its live charges sum to in_use {}, requested {}, "
      "pending {}",
      what, ToString(a.in_use), ToString(a.requested), ToString(a.pending), ToString(a.peak), ToString(Bytes(live.in_use)),
      ToString(Bytes(live.requested)), ToString(Bytes(live.pending))));
}

// What shards may still charge to an account is what it granted, and no more than its headroom allows.
absl::Status CompareGrants(std::string_view what, const Account& account, uint64_t rooms) {
  if (account.granted() == rooms && rooms <= account.peak() && account.in_use() <= account.peak() - rooms) return absl::OkStatus();
  return absl::InternalError(fmt::format("ledger: {} has in_use {}, peak {} and granted {}, but shards have room for {}", what,
                                         account.in_use(), account.peak(), account.granted(), rooms));
}

}  // namespace

absl::Status Ledger::CheckInvariants() const {
  Stopped stopped(*impl_);
  return impl_->Check();
}

absl::Status Ledger::Impl::Check() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  Delta live_total;
  std::array<Delta, kRoleCount> live_by_role;
  absl::flat_hash_map<uint32_t, std::array<Delta, kRoleCount>> live_by_owner;
  ForEachLive([&](const Charge::Entry& e) {
    const auto role = static_cast<size_t>(e.payer.role);
    for (Delta* sum : {&live_total, &live_by_role[role], &live_by_owner[e.payer.owner.value()][role]}) Add(e, *sum);
  });
  uint64_t rooms = 0;
  std::array<uint64_t, kRoleCount> role_rooms = {};
  absl::flat_hash_map<uint32_t, uint64_t> owner_rooms;
  absl::flat_hash_map<OwnerAndRole, uint64_t> line_rooms;
  for (Shard* shard : attached) {
    rooms += shard->room;
    for (size_t role = 0; role < kRoleCount; ++role) role_rooms[role] += shard->roles[role].room;
    for (uint32_t i = 0; i < Shard::kSlots; ++i) {
      const Shard::Slot& slot = shard->slots[i];
      if (slot.owner == Shard::kNobody) continue;
      owner_rooms[slot.owner] += slot.room;
      for (size_t role = 0; role < kRoleCount; ++role) line_rooms[{slot.owner, role}] += slot.roles[role].room;
    }
  }

  Bytes at_peak;
  absl::Status status = CompareGrants("the device", total, rooms);
  owners.ForEach([&](const OwnerAccounts& owner) {
    const std::array<Delta, kRoleCount> live = live_by_owner[owner.id.value()];
    live_by_owner.erase(owner.id.value());
    Delta sum;
    for (size_t role = 0; role < kRoleCount; ++role) {
      sum += live[role];
      static const Account kNothing;
      const Account* account = owner.Find(static_cast<Role>(role));
      if (account == nullptr) account = &kNothing;
      status.Update(Compare(OwnerName(owner.id), Read(*account), live[role]));
      status.Update(CompareGrants(OwnerName(owner.id), *account, line_rooms[{owner.id.value(), role}]));
      at_peak += Read(*account).at_device_peak;
    }
    status.Update(Compare(OwnerName(owner.id), Read(owner.total), sum));
    status.Update(CompareGrants(OwnerName(owner.id), owner.total, owner_rooms[owner.id.value()]));
  });
  if (!status.ok()) return status;
  if (!live_by_owner.empty()) return absl::InternalError("ledger: a charge is paid by an owner that has no account");
  for (size_t role = 0; role < kRoleCount; ++role) {
    status.Update(Compare(RoleName(static_cast<Role>(role)), Read(by_role[role]), live_by_role[role]));
    status.Update(CompareGrants(RoleName(static_cast<Role>(role)), by_role[role], role_rooms[role]));
  }
  status.Update(Compare("the device", Read(total), live_total));
  if (!status.ok()) return status;
  if (at_peak.count() != total.peak()) {
    return absl::InternalError(fmt::format("ledger: who was live at the peak sums to {}, but the peak is {}",
                                           ToString(at_peak), ToString(Bytes(total.peak()))));
  }
  return absl::OkStatus();
}

}  // namespace gpuledger
