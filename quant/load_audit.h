// quant/load_audit.h - the four assertions at the end of a load.
#pragma once

#include <absl/container/flat_hash_set.h>
#include <absl/status/status.h>

#include "gpuledger/load.h"
#include "staging_watch.h"

namespace gpuledger {

using AllocationSet = absl::flat_hash_set<AllocationId>;

// The live allocations (in use and pending) with role source or staging.
AllocationSet LiveSourceAndStaging(const Ledger& ledger);

// Settles, then fills in what result.model's ledger says: figures, audit, residuals, failures. `before` is
// LiveSourceAndStaging from before the load. An error means that the checks could not be made.
absl::Status AuditLoad(const LoadPlan& plan, const AllocationSet& before, const StagingWatch& watch,
                       LoadResult& result);

}  // namespace gpuledger
