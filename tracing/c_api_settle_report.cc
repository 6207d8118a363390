// The report of a settle, for C.
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "c_settle_state.h"
#include "gpuledger/c_status.h"

using namespace gpuledger;  // the functions below are C

gpuledger_status gpuledger_settle_report(gpuledger_settle_state* settle, const char* suppressions, int json, char* buffer, size_t size,
                                         size_t* needed, int* leaks) noexcept {
  return Guard([&]() -> absl::Status {
    if (settle == nullptr || (buffer == nullptr && size > 0)) return absl::InvalidArgumentError("settle or buffer is NULL");
    absl::StatusOr<Suppressions> rules = Suppressions::Parse(suppressions == nullptr ? "" : suppressions);
    if (!rules.ok()) return rules.status();
    ReportOptions options;
    options.suppressions = std::move(*rules);
    const absl::StatusOr<LeakReport> report = settle->settle.Report(options);
    if (!report.ok()) return report.status();
    const std::string text = json != 0 ? ToJson(*report) : ToText(*report, /*colour=*/false);
    if (needed != nullptr) *needed = text.size() + 1;
    if (leaks != nullptr) *leaks = HasLeaks(*report) ? 1 : 0;
    if (size == 0) return absl::OkStatus();
    const size_t kept = std::min(size - 1, text.size());
    std::memcpy(buffer, text.data(), kept);
    buffer[kept] = '\0';
    return absl::OkStatus();
  });
}
