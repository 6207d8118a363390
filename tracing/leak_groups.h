// tracing/leak_groups.h - judged blocks, put together as a report shows them.
#pragma once

#include <cstdint>
#include <vector>

#include "gpuledger/leak_report.h"

namespace gpuledger {

// Fills in the report's classes, undecided, leaks and kept. `ages_ns`: of each block, when the settle began. Owners and sites
// are those of this process.
void FillGroups(const std::vector<LiveBlock>& blocks, const std::vector<uint64_t>& ages_ns, const std::vector<BlockVerdict>& verdicts,
                const ReportOptions& options, LeakReport* report);

// The frames of a site of this process, innermost first; empty if it has none.
std::vector<TraceFrame> StackOf(SiteId site);

}  // namespace gpuledger
