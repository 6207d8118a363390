// Reading the ledger: usage, who was live at the peak, lineage and residual, and the check of the equations.
#include <algorithm>

#include <fmt/format.h>

#include "ledger_impl.h"

namespace gpuledger {

Usage Ledger::Impl::Read(const Account& a) const {
  return {a.in_use, a.requested, a.pending, a.peak, a.at_peak(epoch), a.charged_ever, a.count, a.pending_count};
}

Usage Ledger::usage() const {
  MutexLock lock(impl_->mutex);
  return impl_->Read(impl_->total);
}

Usage Ledger::usage(OwnerId owner) const {
  MutexLock lock(impl_->mutex);
  const OwnerAccounts* accounts = impl_->FindOwner(owner);
  return accounts == nullptr ? Usage{} : impl_->Read(accounts->total);
}

Usage Ledger::usage(Role role) const {
  MutexLock lock(impl_->mutex);
  return impl_->Read(impl_->by_role[static_cast<size_t>(role)]);
}

Usage Ledger::usage(OwnerId owner, Role role) const {
  MutexLock lock(impl_->mutex);
  const OwnerAccounts* accounts = impl_->FindOwner(owner);
  if (accounts == nullptr) return {};
  const Account* account = accounts->roles[static_cast<size_t>(role)].get();
  return account == nullptr ? Usage{} : impl_->Read(*account);
}

namespace {

// Largest first by `bytes`, then by name and role, so that reports do not depend on the order of interning.
void SortForReport(std::vector<OwnerUsage>& rows, Bytes Usage::*bytes) {
  std::sort(rows.begin(), rows.end(), [bytes](const OwnerUsage& a, const OwnerUsage& b) {
    if (a.usage.*bytes != b.usage.*bytes) return a.usage.*bytes > b.usage.*bytes;
    const std::string_view a_name = OwnerName(a.payer.owner), b_name = OwnerName(b.payer.owner);
    return a_name != b_name ? a_name < b_name : a.payer.role < b.payer.role;
  });
}

}  // namespace

std::vector<OwnerUsage> Ledger::usage_by_owner() const {
  std::vector<OwnerUsage> rows;
  {
    MutexLock lock(impl_->mutex);
    for (uint32_t id = 0; id < impl_->owners.size(); ++id) {
      if (impl_->owners[id] == nullptr) continue;
      for (int role = 0; role < kRoleCount; ++role) {
        const Account* account = impl_->owners[id]->roles[static_cast<size_t>(role)].get();
        if (account != nullptr) rows.push_back({{OwnerId(id), static_cast<Role>(role)}, impl_->Read(*account)});
      }
    }
  }
  SortForReport(rows, &Usage::in_use);
  return rows;
}

std::vector<OwnerUsage> Ledger::live_at_peak() const {
  std::vector<OwnerUsage> rows = usage_by_owner();
  std::erase_if(rows, [](const OwnerUsage& row) { return row.usage.at_device_peak.is_zero(); });
  SortForReport(rows, &Usage::at_device_peak);
  return rows;
}

std::vector<LiveAllocation> Ledger::live(OwnerId owner) const {
  std::vector<LiveAllocation> found;
  MutexLock lock(impl_->mutex);
  const OwnerAccounts* accounts = impl_->FindOwner(owner);
  if (accounts == nullptr) return found;
  for (const Charge::Entry* e = accounts->first; e != nullptr; e = e->next) found.push_back(e->info());
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return found;
}

std::vector<LiveAllocation> Ledger::live() const {
  std::vector<LiveAllocation> found;
  MutexLock lock(impl_->mutex);
  for (const auto& owner : impl_->owners) {
    if (owner == nullptr) continue;
    for (const Charge::Entry* e = owner->first; e != nullptr; e = e->next) found.push_back(e->info());
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return found;
}

// ---- lineage -----------------------------------------------------------------------------------------------------

namespace {

bool IsResidualRole(Role role) { return role == Role::kSource || role == Role::kStaging; }

Record LineageRecord(RecordKind kind, OwnerId weight, const Clock& clock) {
  Record record;
  record.kind = kind;
  record.owner = weight;
  record.time = clock.now();
  record.thread = ThisThread();
  return record;
}

}  // namespace

void Ledger::OpenLineage(OwnerId weight) {
  const Record record = LineageRecord(RecordKind::kLineageOpened, weight, impl_->clock);
  MutexLock lock(impl_->mutex);
  LineageState& state = impl_->OwnerOf(weight).lineage;
  impl_->open_lineages += state != LineageState::kOpen;
  state = LineageState::kOpen;
  impl_->WriteNote(record);
}

void Ledger::CloseLineage(OwnerId weight) {
  const Record record = LineageRecord(RecordKind::kLineageClosed, weight, impl_->clock);
  MutexLock lock(impl_->mutex);
  LineageState& state = impl_->OwnerOf(weight).lineage;
  if (state == LineageState::kOpen) {
    state = LineageState::kClosed;
    impl_->open_lineages -= 1;
  }
  impl_->WriteNote(record);
}

Lineage Ledger::lineage(OwnerId weight) const {
  Lineage lineage;
  MutexLock lock(impl_->mutex);
  const OwnerAccounts* accounts = impl_->FindOwner(weight);
  if (accounts == nullptr) return lineage;
  lineage.state = accounts->lineage;
  const auto stage = [&](Role role, Usage& usage) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    const Account* account = accounts->roles[static_cast<size_t>(role)].get();
    if (account != nullptr) usage = impl_->Read(*account);
  };
  stage(Role::kSource, lineage.source);
  stage(Role::kStaging, lineage.staging);
  stage(Role::kQuantized, lineage.quantized);
  return lineage;
}

Residual Ledger::Impl::ResidualOf(OwnerId weight, const OwnerAccounts& owner) const {
  Residual residual{weight, Bytes(), {}};
  for (const Charge::Entry* e = owner.first; e != nullptr; e = e->next) {
    if (!IsResidualRole(e->payer.role)) continue;
    residual.bytes += e->charged;
    residual.allocations.push_back(e->info());
  }
  return residual;
}

absl::StatusOr<Residual> Ledger::residual(OwnerId weight) const {
  MutexLock lock(impl_->mutex);
  const OwnerAccounts* accounts = impl_->FindOwner(weight);
  const LineageState state = accounts == nullptr ? LineageState::kNone : accounts->lineage;
  if (state != LineageState::kClosed) {
    return absl::FailedPreconditionError(fmt::format(
        "undecided: the lineage of {} {}, so its residual has no verdict yet", OwnerName(weight),
        state == LineageState::kOpen ? "is still open" : "was never opened"));
  }
  return impl_->ResidualOf(weight, *accounts);
}

std::vector<Residual> Ledger::residuals() const {
  std::vector<Residual> found;
  {
    MutexLock lock(impl_->mutex);
    for (uint32_t id = 0; id < impl_->owners.size(); ++id) {
      const OwnerAccounts* accounts = impl_->owners[id].get();
      if (accounts == nullptr || accounts->lineage != LineageState::kClosed) continue;
      Residual residual = impl_->ResidualOf(OwnerId(id), *accounts);
      if (!residual.bytes.is_zero()) found.push_back(std::move(residual));
    }
  }
  std::sort(found.begin(), found.end(), [](const Residual& a, const Residual& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : OwnerName(a.weight) < OwnerName(b.weight);
  });
  return found;
}

uint64_t Ledger::open_lineages() const {
  MutexLock lock(impl_->mutex);
  return impl_->open_lineages;
}

// ---- the equations, recomputed -------------------------------------------------------------------------------------

namespace {

// `what` names an account; `live` is what the live charges say it must hold.
absl::Status Compare(std::string_view what, const Account& account, const Account& live) {
  if (account.in_use == live.in_use && account.requested == live.requested && account.pending == live.pending &&
      account.count == live.count && account.pending_count == live.pending_count && account.requested <= account.in_use &&
      account.in_use <= account.peak) {
    return absl::OkStatus();
  }
  return absl::InternalError(fmt::format(
      "ledger: {} holds in_use {}, requested {}, pending {}, peak {}; its live charges sum to in_use {}, requested {}, "
      "pending {}",
      what, ToString(account.in_use), ToString(account.requested), ToString(account.pending), ToString(account.peak),
      ToString(live.in_use), ToString(live.requested), ToString(live.pending)));
}

void Add(const Charge::Entry& e, Account& sum) {
  if (e.pending()) {
    sum.pending += e.charged;
    sum.pending_count += 1;
  } else {
    sum.in_use += e.charged;
    sum.requested += e.requested;
    sum.count += 1;
  }
}

}  // namespace

absl::Status Ledger::CheckInvariants() const {
  MutexLock lock(impl_->mutex);
  return impl_->Check();
}

absl::Status Ledger::Impl::Check() const {
  Account live_total;
  std::array<Account, kRoleCount> live_by_role;
  Bytes at_peak;
  for (uint32_t id = 0; id < owners.size(); ++id) {
    if (owners[id] == nullptr) continue;
    const OwnerAccounts& owner = *owners[id];
    Account live_owner;
    std::array<Account, kRoleCount> live_roles;
    for (const Charge::Entry* e = owner.first; e != nullptr; e = e->next) {
      if (e->payer.owner != OwnerId(id)) return absl::InternalError("ledger: a charge is in another owner's list");
      const auto role = static_cast<size_t>(e->payer.role);
      for (Account* sum : {&live_total, &live_owner, &live_by_role[role], &live_roles[role]}) Add(*e, *sum);
    }
    if (absl::Status s = Compare(OwnerName(OwnerId(id)), owner.total, live_owner); !s.ok()) return s;
    for (size_t role = 0; role < kRoleCount; ++role) {
      static const Account kNothing;
      const Account& account = owner.roles[role] == nullptr ? kNothing : *owner.roles[role];
      if (absl::Status s = Compare(OwnerName(OwnerId(id)), account, live_roles[role]); !s.ok()) return s;
      at_peak += account.at_peak(epoch);
    }
  }
  for (size_t role = 0; role < kRoleCount; ++role) {
    if (absl::Status s = Compare(RoleName(static_cast<Role>(role)), by_role[role], live_by_role[role]); !s.ok()) return s;
  }
  if (absl::Status s = Compare("the device", total, live_total); !s.ok()) return s;
  if (at_peak != total.peak) {
    return absl::InternalError(fmt::format("ledger: who was live at the peak sums to {}, but the peak is {}",
                                           ToString(at_peak), ToString(total.peak)));
  }
  return absl::OkStatus();
}

}  // namespace gpuledger
