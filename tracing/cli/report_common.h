// cli/report_common.h - what report and run have in common.
#pragma once

#include <string>

#include <absl/status/statusor.h>

#include "commands.h"
#include "gpuledger/leak_report.h"

namespace gpuledger::cli {

void AddReportOptions(CLI::App& command, ReportFlags& flags);  // those of a report, whoever asks for it
absl::StatusOr<ReportOptions> ReportOptionsFrom(const ReportFlags& flags);
// With a progress bar.
absl::StatusOr<LeakReport> ReportOnFile(const std::string& path, ReportOptions options);
// What --check makes of it; says why on stderr where it cannot tell.
ExitCode CheckCode(const LeakReport& report, const ReportFlags& flags);
// "gpuledger: python train.py, process 17, 12345 entries"
std::string Describe(const LeakReport& report);

}  // namespace gpuledger::cli
