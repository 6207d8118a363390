#include "gpuledger/process.h"

#include <algorithm>

#include <fmt/format.h>

namespace gpuledger {
namespace {

void Add(Usage& sum, const Usage& u) {
  sum.in_use += u.in_use, sum.requested += u.requested, sum.pending += u.pending;
  sum.peak += u.peak, sum.at_device_peak += u.at_device_peak, sum.charged_ever += u.charged_ever;
  sum.count += u.count, sum.pending_count += u.pending_count;
}

absl::Status ForEachLedger(absl::FunctionRef<void(Ledger&)> visit) {
  bool any = false;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    visit(keeper.ledger());
    any = true;
  });
  return any ? absl::OkStatus() : absl::FailedPreconditionError("there is no allocator in this process, so no ledger that could know of a lineage");
}

}  // namespace

Usage ProcessUsage(std::optional<OwnerId> owner, std::optional<Role> role) {
  Usage sum;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    const Ledger& l = keeper.ledger();
    l.Flush();
    if (owner.has_value()) {
      Add(sum, role.has_value() ? l.usage(*owner, *role) : l.usage(*owner));
    } else {
      Add(sum, role.has_value() ? l.usage(*role) : l.usage());
    }
  });
  return sum;
}

void ResetProcessPeak() {
  ForEachKeeper([](LedgerKeeper& keeper) { keeper.ledger().ResetPeak(); });
}

absl::StatusOr<LiveAllocation> FindInProcess(uint64_t address) {
  absl::StatusOr<LiveAllocation> found = absl::NotFoundError(fmt::format("no block in use or pending holds {:#x}, in any ledger", address));
  ForEachKeeper([&](LedgerKeeper& keeper) {
    if (!found.ok()) {
      if (absl::StatusOr<LiveAllocation> here = keeper.Find(address); here.ok()) found = std::move(here);
    }
  });
  return found;
}

absl::Status TransferInProcess(uint64_t address, Payer to) {
  absl::Status done = absl::NotFoundError(fmt::format("no block in use starts at {:#x}, in any ledger", address));
  ForEachKeeper([&](LedgerKeeper& keeper) {
    if (!done.ok() && keeper.Transfer(address, to).ok()) done = absl::OkStatus();
  });
  return done;
}

Lineage ProcessLineage(OwnerId weight) {
  Lineage sum;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    const Lineage here = keeper.ledger().lineage(weight);
    if (sum.state != LineageState::kOpen && here.state != LineageState::kNone) sum.state = here.state;
    Add(sum.source, here.source), Add(sum.staging, here.staging), Add(sum.quantized, here.quantized);
  });
  return sum;
}

absl::Status OpenProcessLineage(OwnerId weight) {
  return ForEachLedger([weight](Ledger& ledger) { ledger.OpenLineage(weight); });
}
absl::Status CloseProcessLineage(OwnerId weight) {
  return ForEachLedger([weight](Ledger& ledger) { ledger.CloseLineage(weight); });
}

absl::StatusOr<ResidualOfGlob> ProcessResidual(std::string_view glob) {
  std::vector<LiveAllocation> held;  // of roles source and staging
  std::vector<OwnerId> open, closed;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    LedgerMoment moment = keeper.ledger().moment();
    for (const LiveAllocation& a : moment.live) {
      const bool residual_role = a.payer.role == Role::kSource || a.payer.role == Role::kStaging;
      if (residual_role && OwnerMatches(glob, OwnerName(a.payer.owner))) held.push_back(a);
    }
    open.insert(open.end(), moment.open_lineages.begin(), moment.open_lineages.end());
    closed.insert(closed.end(), moment.closed_lineages.begin(), moment.closed_lineages.end());
  });
  const auto matches = [glob](OwnerId owner) { return OwnerMatches(glob, OwnerName(owner)); };
  if (const auto found = std::find_if(open.begin(), open.end(), matches); found != open.end()) {
    return absl::FailedPreconditionError(fmt::format("undecided: the lineage of {} is still open, so it has no residual yet", OwnerName(*found)));
  }
  if (std::none_of(closed.begin(), closed.end(), matches)) {
    return absl::FailedPreconditionError(fmt::format("undecided: no weight whose lineage is closed matches '{}'", glob));
  }
  std::sort(closed.begin(), closed.end());
  ResidualOfGlob residual;
  for (LiveAllocation& a : held) {
    if (!std::binary_search(closed.begin(), closed.end(), a.payer.owner)) {
      return absl::FailedPreconditionError(fmt::format("undecided: {} holds {} [{}], but never had a lineage", OwnerName(a.payer.owner),
                                                       ToString(a.charged), RoleName(a.payer.role)));
    }
    residual.bytes += a.charged;
    residual.allocations.push_back(a);
  }
  return residual;
}

}  // namespace gpuledger
