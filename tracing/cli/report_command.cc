// gpuledger report FILE: a trace, also one still being written, as a leak report.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

#include "commands.h"
#include "gpuledger/trace_reader.h"
#include "report_common.h"
#include "terminal.h"

namespace gpuledger::cli {

void AddReportOptions(CLI::App& command, ReportFlags& flags) {
  command.add_option("--suppressions", flags.suppressions, "Known leaks: leak:PATTERN of a frame, owner:GLOB, one a line (LeakSanitizer's syntax)");
  command.add_option("--growth-warmup", flags.growth_warmup, "Marks that growth may take to settle")->capture_default_str();
  command.add_flag("--check", flags.check, "Exit with 23 if there are leaks, with 1 if nobody can tell");
  command.add_flag("--redact", flags.redact, "No paths and no names: words that tell nothing in their place");
}

void AddReportFlags(CLI::App& command, ReportFlags& flags) {
  command.add_option("FILE", flags.trace, "A trace, also one that is still being written")->required();
  AddReportOptions(command, flags);
  command.add_flag("--blocks", flags.blocks, "Every block that was live at the peak");
  command.add_flag("--json", flags.json, "One object on stdout (tracing/report.schema.json)");
}

absl::StatusOr<ReportOptions> ReportOptionsFrom(const ReportFlags& flags) {
  ReportOptions options;
  options.blocks = flags.blocks;
  options.redact = flags.redact;
  options.growth_warmup = flags.growth_warmup;
  if (flags.suppressions.empty()) return options;
  std::ifstream file(flags.suppressions);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(fmt::format("the suppressions {} cannot be read", flags.suppressions));
  absl::StatusOr<Suppressions> rules = Suppressions::Parse(text.str());
  if (!rules.ok()) return absl::InvalidArgumentError(fmt::format("{}: {}", flags.suppressions, Message(rules.status())));
  options.suppressions = *std::move(rules);
  return options;
}

absl::StatusOr<LeakReport> ReportOnFile(const std::string& path, ReportOptions options) {
  absl::StatusOr<std::unique_ptr<TraceReader>> trace = TraceReader::Open(path);
  if (!trace.ok()) return trace.status();
  ProgressBar bar("reading");
  options.on_progress = [&bar](double part) { bar.Update(static_cast<uint64_t>(part * 100), 100, "%"); };
  return ReportOnTrace(**trace, options);
}

ExitCode CheckCode(const LeakReport& report, const ReportFlags& flags) {
  if (!flags.check) return ExitCode::kFine;
  if (HasLeaks(report)) return ExitCode::kLeaks;
  if (report.allocations == 0) {
    return Fail(ExitCode::kInternal, "the trace has no allocation: nothing was recorded, so nothing can be checked (gpuledger doctor says what works here)", false);
  }
  if (!IsDecided(report)) {
    return Fail(ExitCode::kInternal, fmt::format("undecided: {}; a check needs a settle (gpuledger.settle(), or a program that ends in good order under gpuledger run)",
                                                 report.undecided_why), false);
  }
  return ExitCode::kFine;
}

ExitCode RunReport(const ReportFlags& flags) {
  const absl::StatusOr<ReportOptions> options = ReportOptionsFrom(flags);
  if (!options.ok()) return Fail(options.status(), flags.json);
  const absl::StatusOr<LeakReport> report = ReportOnFile(flags.trace, *options);
  if (!report.ok()) return Fail(report.status(), flags.json);
  const bool colour = isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  if (!flags.json) fmt::print("{}\n", Describe(*report));
  fmt::print("{}{}", flags.json ? ToJson(*report) : ToText(*report, colour), flags.json ? "\n" : "");
  return CheckCode(*report, flags);
}

std::string Describe(const LeakReport& report) {
  return fmt::format("gpuledger: {}{}{} entries\n", report.trace.command.empty() ? "" : report.trace.command + ", ",
                     report.trace.process == 0 ? "" : fmt::format("process {}, ", report.trace.process), report.entries);
}

}  // namespace gpuledger::cli
