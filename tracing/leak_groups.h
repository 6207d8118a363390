// tracing/leak_groups.h - judged blocks, put together as a report shows them.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "gpuledger/leak_report.h"

namespace gpuledger {

// Where the names of owners and the frames of sites are: this process, or a trace.
class Names {
 public:
  virtual ~Names() = default;
  [[nodiscard]] virtual std::string_view owner(OwnerId owner) const = 0;
  // Innermost first; empty if it has none.
  [[nodiscard]] virtual std::vector<TraceFrame> stack(SiteId site) const = 0;
};
const Names& NamesOfThisProcess();

// Fills in the report's classes, undecided, leaks and kept. `ages_ns`: of each block, when the settle began.
void FillGroups(const Names& names, const std::vector<LiveBlock>& blocks, const std::vector<uint64_t>& ages_ns, const std::vector<BlockVerdict>& verdicts,
                const ReportOptions& options, LeakReport* report);

}  // namespace gpuledger
