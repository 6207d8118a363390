#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "figures.h"
#include "gpuledger/allocator.h"
#include "interrupt.h"
#include "json.h"
#include "replay_plot.h"
#include "replay_text.h"

namespace gpuledger::cli {
namespace {

constexpr const char* kThreads =
    "1: each row in its place. 2: the second thread does all frees, handed over in the order of the trace; an allocation "
    "waits until the frees of earlier rows are done. N: N-1 threads allocate, with the streams dealt out over them (stream "
    "number modulo N-1), and the last frees; an allocation waits for all frees of earlier rows, a free for the earlier "
    "allocations of the thread that allocated its block";

absl::StatusOr<std::unique_ptr<replay::ReplayDevice>> DeviceFor(const std::string& upstream,
                                                                const replay::AllocationTrace& trace) {
  if (upstream == "fake") return replay::MakeFakeDevice(trace);
  return upstream == "host" ? replay::MakeHostDevice(trace) : replay::MakeCudaDevice(trace);
}

absl::Status CheckFlags(const ReplayFlags& flags) {
  if (flags.upstream != "fake" && flags.upstream != "host" && flags.upstream != "cuda") {
    return absl::InvalidArgumentError(fmt::format("--upstream {}: fake, host and cuda are the known ones", flags.upstream));
  }
  if (flags.min_cap && flags.upstream != "fake") {
    return absl::InvalidArgumentError("--min-cap replays the trace many times: on --upstream fake only");
  }
  if (flags.threads < 1 || flags.threads > replay::kMostThreads) {
    return absl::InvalidArgumentError(fmt::format("--threads {}: from 1 to {}", flags.threads, replay::kMostThreads));
  }
  return flags.plot.empty() ? absl::OkStatus() : CheckPlot(flags.plot);
}

absl::StatusOr<replay::AllocationTrace> Read(const std::string& path) {
  ProgressBar bar("reading");
  absl::StatusOr<replay::AllocationTrace> trace = replay::ReadAllocationTrace(path, ShowUntilInterrupted(bar));
  if (trace.ok() && trace->peak_requested > replay::kLargestReplay) {
    return absl::InvalidArgumentError(fmt::format("{}: its peak is {} ({}); replay goes up to {}", path,
                                                  Human(trace->peak_requested), ToString(trace->peak_requested),
                                                  Human(replay::kLargestReplay)));
  }
  return trace;
}

replay::RowProgress ShowRows(ProgressBar& bar) {
  return [&bar](uint64_t done, uint64_t total) {
    bar.Update(done, total, "events");
    return !Interrupted();
  };
}

}  // namespace

void AddReplayFlags(CLI::App& command, ReplayFlags& flags) {
  command.add_option("TRACE", flags.trace, "A gzip file of rows op,id,size,stream,time_us")->required();
  command.add_option("--upstream", flags.upstream,
                     "fake: no memory, modelled costs. host: memory of this computer, with a pattern in each block. "
                     "cuda: memory and streams of GPU 0, with a pattern in each block")
      ->capture_default_str();
  CLI::Option* const cap = command.add_option("--cap", flags.cap, "Reserve no more than this, as in 1.5GiB");
  command.add_flag("--min-cap", flags.min_cap, "Also find the smallest cap with which the trace completes, by bisection")
      ->excludes(cap);
  command.add_option("--threads", flags.threads, kThreads)->check(WholeNumber())->capture_default_str();
  command.add_option("--plot", flags.plot, "Draw reserved, in use and requested over time: FILE.png or FILE.svg")
      ->type_name("FILE");
  command.add_flag("--json", flags.json, "One JSON object on stdout; text for people on stderr");
}

ExitCode RunReplay(const ReplayFlags& flags) {
  if (absl::Status status = CheckFlags(flags); !status.ok()) return Fail(status, flags.json);
  replay::ReplayOptions options{.threads = static_cast<int>(flags.threads)};
  std::optional<Bytes> cap;
  if (!flags.cap.empty()) {
    const absl::StatusOr<Bytes> size = ParseBytes(flags.cap);
    if (!size.ok()) return Fail(ExitCode::kUsage, fmt::format("--cap: {}", Message(size.status())), flags.json);
    cap = options.cap = *size;
  }
  if (!flags.plot.empty()) options.samples = kPlotSamples;
  const absl::StatusOr<replay::AllocationTrace> trace = Read(flags.trace);
  if (!trace.ok()) return Fail(trace.status(), flags.json);
  absl::StatusOr<std::unique_ptr<replay::ReplayDevice>> device = DeviceFor(flags.upstream, *trace);
  if (!device.ok()) return Fail(device.status(), flags.json);

  absl::StatusOr<replay::ReplayResult> result = [&] {
    ProgressBar bar("replaying");
    return replay::Replay(*trace, **device, options, ShowRows(bar));
  }();
  if (!result.ok()) return Fail(result.status(), flags.json);
  Replayed replayed{*trace, flags.upstream, options.threads, cap, *std::move(result), std::nullopt};
  if (flags.min_cap) {
    ProgressBar bar("smallest cap");
    const absl::StatusOr<Bytes> smallest =
        replay::SmallestCap(*trace, replayed.result.peak_reserved, options.threads, ShowRows(bar));
    if (!smallest.ok()) return Fail(smallest.status(), flags.json);
    replayed.min_cap = *smallest;
  }
  if (!flags.plot.empty()) {
    if (absl::Status status = WritePlot(replayed, flags.plot); !status.ok()) return Fail(status, flags.json);
  }

  std::FILE* const out = flags.json ? stderr : stdout;
  fmt::print(out, "{}", ReplayText(replayed, Style(out)));
  if (flags.json) PrintJson(ReplayJson(replayed));
  if (replayed.result.completed) return ExitCode::kFine;
  std::fflush(out);
  fmt::print(stderr, "{} {}\n", Style(stderr).Bad("gpuledger:"), replayed.result.report);
  return ExitCode::kOutOfMemory;
}

}  // namespace gpuledger::cli
