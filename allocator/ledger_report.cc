// Reading the ledger: usage, who was live at the peak, live charges, lineage and residual.
#include <algorithm>

#include <fmt/format.h>

#include "ledger_impl.h"

namespace gpuledger {

Usage Ledger::usage() const {
  Shard& shard = impl_->MyShard();
  SpinHold hold(shard.mutex);
  Delta own;
  for (const Shard::Line& role : shard.roles) own += role.held;
  return impl_->total.Read(own, impl_->epoch);
}

Usage Ledger::usage(OwnerId owner) const {
  Shard& shard = impl_->MyShard();
  SpinHold hold(shard.mutex);
  Delta own;
  const Shard::Slot& slot = shard.slots[owner.value() & shard.slot_mask];
  const OwnerAccounts* accounts = slot.accounts;
  if (slot.owner == owner.value()) {
    for (const Shard::Line& role : slot.roles) own += role.held;
  } else {
    accounts = impl_->owners.Find(owner);
  }
  return accounts == nullptr ? Usage{} : accounts->total.Read(own, impl_->epoch);
}

Usage Ledger::usage(Role role) const {
  Shard& shard = impl_->MyShard();
  SpinHold hold(shard.mutex);
  return impl_->by_role[static_cast<size_t>(role)].Read(shard.roles[static_cast<size_t>(role)].held, impl_->epoch);
}

Usage Ledger::usage(OwnerId owner, Role role) const {
  Shard& shard = impl_->MyShard();
  SpinHold hold(shard.mutex);
  const OwnerAccounts* accounts = impl_->owners.Find(owner);
  const Account* account = accounts == nullptr ? nullptr : accounts->Find(role);
  if (account == nullptr) return {};
  const Shard::Slot& slot = shard.slots[owner.value() & shard.slot_mask];
  const Delta own = slot.owner == owner.value() ? slot.roles[static_cast<size_t>(role)].held : Delta{};
  return account->Read(own, impl_->epoch);
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

std::vector<OwnerUsage> Ledger::Impl::ByOwner() {
  std::vector<OwnerUsage> rows;
  owners.ForEach([&](const OwnerAccounts& owner) {
    for (int role = 0; role < kRoleCount; ++role) {
      const Account* account = owner.Find(static_cast<Role>(role));
      if (account != nullptr) rows.push_back({{owner.id, static_cast<Role>(role)}, Read(*account)});
    }
  });
  return rows;
}

LedgerCut::LedgerCut(Ledger::Impl& ledger) {
  {
    Stopped stopped(ledger);
    device = ledger.Read(ledger.total);
    owners = ledger.ByOwner();
  }
  SortForReport(owners, &Usage::in_use);
}

std::vector<OwnerUsage> Ledger::usage_by_owner() const { return LedgerCut(*impl_).owners; }

std::vector<OwnerUsage> Ledger::live_at_peak() const {
  std::vector<OwnerUsage> rows = usage_by_owner();
  std::erase_if(rows, [](const OwnerUsage& row) { return row.usage.at_device_peak.is_zero(); });
  SortForReport(rows, &Usage::at_device_peak);
  return rows;
}

namespace {

void SortByTime(std::vector<LiveAllocation>& found) {
  std::sort(found.begin(), found.end(), [](const LiveAllocation& a, const LiveAllocation& b) {
    return a.time != b.time ? a.time < b.time : a.id < b.id;
  });
}

}  // namespace

std::vector<LiveAllocation> Ledger::live(OwnerId owner) const {
  std::vector<LiveAllocation> found;
  {
    Stopped stopped(*impl_);
    const OwnerAccounts* accounts = impl_->owners.Find(owner);
    if (accounts == nullptr || !accounts->total.has_live()) return found;
    impl_->ForEachLive([&](const Charge::Entry& e) {
      if (e.payer.owner == owner) found.push_back(e.info());
    });
  }
  SortByTime(found);
  return found;
}

std::vector<LiveAllocation> Ledger::live() const {
  std::vector<LiveAllocation> found;
  {
    Stopped stopped(*impl_);
    impl_->ForEachLive([&](const Charge::Entry& e) { found.push_back(e.info()); });
  }
  SortByTime(found);
  return found;
}

LedgerMoment Ledger::moment() const {
  LedgerMoment now;
  now.id = impl_->id;
  const std::vector<Shard*> shards = impl_->shards.All();
  {
    Stopped stopped(*impl_);
    now.time = impl_->clock.now();
    // A change that is in the accounts may not be written yet where its thread holds a detached shard: it writes before it lets
    // go, and nothing else can reach the ledger meanwhile.
    for (Shard* const shard : shards) now.cuts.push_back(impl_->CutOf(*shard));
    now.usage = impl_->Read(impl_->total);
    now.owners = impl_->ByOwner();
    now.live.reserve(now.usage.count + now.usage.pending_count);
    impl_->ForEachLive([&](const Charge::Entry& e) { now.live.push_back(e.info()); });
    impl_->owners.ForEach([&](const OwnerAccounts& owner) {
      if (owner.lineage == LineageState::kOpen) now.open_lineages.push_back(owner.id);
      if (owner.lineage == LineageState::kClosed) now.closed_lineages.push_back(owner.id);
    });
  }
  SortByTime(now.live);
  return now;
}

// ---- lineage -----------------------------------------------------------------------------------------------------

namespace {

bool IsResidualRole(Role role) { return role == Role::kSource || role == Role::kStaging; }

bool HasResidual(const OwnerAccounts& owner) {
  for (const Role role : {Role::kSource, Role::kStaging}) {
    if (const Account* account = owner.Find(role); account != nullptr && account->has_live()) return true;
  }
  return false;
}

}  // namespace

void Ledger::OpenLineage(OwnerId weight) {
  {
    MutexLock lock(impl_->central);
    LineageState& state = impl_->owners.FindOrMake(weight).lineage;
    impl_->open_lineages += state != LineageState::kOpen;
    state = LineageState::kOpen;
  }
  Record record;
  record.kind = RecordKind::kLineageOpened;
  record.owner = weight;
  Note(record);
}

void Ledger::CloseLineage(OwnerId weight) {
  {
    MutexLock lock(impl_->central);
    LineageState& state = impl_->owners.FindOrMake(weight).lineage;
    if (state == LineageState::kOpen) {
      state = LineageState::kClosed;
      impl_->open_lineages -= 1;
    }
  }
  Record record;
  record.kind = RecordKind::kLineageClosed;
  record.owner = weight;
  Note(record);
}

Lineage Ledger::lineage(OwnerId weight) const {
  Lineage lineage;
  Stopped stopped(*impl_);
  const OwnerAccounts* accounts = impl_->owners.Find(weight);
  if (accounts == nullptr) return lineage;
  lineage.state = accounts->lineage;
  const auto stage = [&](Role role, Usage& usage) {
    if (const Account* account = accounts->Find(role); account != nullptr) usage = impl_->Read(*account);
  };
  stage(Role::kSource, lineage.source);
  stage(Role::kStaging, lineage.staging);
  stage(Role::kQuantized, lineage.quantized);
  return lineage;
}

Residual Ledger::Impl::ResidualOf(const OwnerAccounts& owner) {
  Residual residual{owner.id, Bytes(), {}};
  if (!HasResidual(owner)) return residual;
  ForEachLive([&](const Charge::Entry& e) {
    if (e.payer.owner != owner.id || !IsResidualRole(e.payer.role)) return;
    residual.bytes += e.charged;
    residual.allocations.push_back(e.info());
  });
  SortByTime(residual.allocations);
  return residual;
}

absl::StatusOr<Residual> Ledger::residual(OwnerId weight) const {
  Stopped stopped(*impl_);
  const OwnerAccounts* accounts = impl_->owners.Find(weight);
  const LineageState state = accounts == nullptr ? LineageState::kNone : accounts->lineage;
  if (state != LineageState::kClosed) {
    return absl::FailedPreconditionError(fmt::format(
        "undecided: the lineage of {} {}, so its residual has no verdict yet", OwnerName(weight),
        state == LineageState::kOpen ? "is still open" : "was never opened"));
  }
  return impl_->ResidualOf(*accounts);
}

std::vector<Residual> Ledger::residuals() const {
  std::vector<Residual> found;
  {
    Stopped stopped(*impl_);
    impl_->owners.ForEach([&](const OwnerAccounts& owner) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
      if (owner.lineage != LineageState::kClosed) return;
      Residual residual = impl_->ResidualOf(owner);
      if (!residual.bytes.is_zero()) found.push_back(std::move(residual));
    });
  }
  std::sort(found.begin(), found.end(), [](const Residual& a, const Residual& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : OwnerName(a.weight) < OwnerName(b.weight);
  });
  return found;
}

uint64_t Ledger::open_lineages() const {
  MutexLock lock(impl_->central);
  return impl_->open_lineages;
}

}  // namespace gpuledger
