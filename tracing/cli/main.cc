// The `gpuledger` command.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <iterator>
#include <system_error>

#include "commands.h"
#include "interrupt.h"
#include "json.h"
#include "terminal.h"

namespace gpuledger::cli {
namespace {

int Main(int argc, char** argv) {
  CLI::App app("Who owns each byte of device memory, and a 4-bit load that proves it left nothing behind.",
               "gpuledger");
  app.set_version_flag("--version", "gpuledger " GPULEDGER_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 fine, 1 internal error, 2 usage or bad input, 3 an assertion failed,\n"
      "            4 out of memory or over the cap, 23 leaks (with --check), 130 stopped by Ctrl-C;\n"
      "            run passes the program's own code through");

  PlanFlags plan_flags;
  CLI::App& plan =
      *app.add_subcommand("plan", "What a load will do with each weight, and its exact peak; reads headers only");
  AddModelFlags(plan, plan_flags);
  plan.add_flag("--all", plan_flags.all, "A line for every weight, also of repeated layers");

  LoadFlags load_flags;
  CLI::App& load =
      *app.add_subcommand("load", "Loads in 4 bit under the plan's cap, audits, and optionally writes a checkpoint");
  AddModelFlags(load, load_flags);
  load.add_option("--out", load_flags.out, "Write the 4-bit checkpoint to this directory, which must not exist yet");
  load.add_flag("--verify", load_flags.verify, "Read each weight again and compare it with its 4-bit values");
  load.add_option("--plant-fault", load_flags.plant_fault)->group("");  // quant/README.md

  SynthFlags synth_flags;
  CLI::App& synth =
      *app.add_subcommand("synth", "Writes a model of known shapes, or those of a config.json, with seeded weights");
  AddSynthFlags(synth, synth_flags);

  ReplayFlags replay_flags;
  CLI::App& replay =
      *app.add_subcommand("replay", "Drives the allocator with a recorded trace: what it reserves, and what that costs");
  AddReplayFlags(replay, replay_flags);

  ReportFlags report_flags;
  CLI::App& report = *app.add_subcommand("report", "What leaked, whose it was and who holds it: from a trace, also one being written");
  AddReportFlags(report, report_flags);

  RunFlags run_flags;
  CLI::App& run = *app.add_subcommand("run", "Runs a program with recording, and reports what it leaked: gpuledger run -- PROG ARGS");
  AddRunFlags(run, run_flags);

  DoctorFlags doctor_flags;
  CLI::App& doctor = *app.add_subcommand("doctor", "What works here, and what to do about what does not");
  doctor.add_flag("--json", doctor_flags.json, "One object on stdout");

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    std::fputs(fmt::format("gpuledger: {}\nSee gpuledger --help.\n", error.what()).c_str(), stderr);
    const bool wants_json = std::any_of(argv, argv + argc, [](std::string_view word) { return word == "--json"; });
    if (wants_json) PrintJson(ErrorJson(static_cast<int>(ExitCode::kUsage), error.what()));
    return static_cast<int>(ExitCode::kUsage);
  }
  struct Command {
    const CLI::App& app;
    bool json;
    std::function<int()> run;
  };
  const auto code_of = [](ExitCode code) { return static_cast<int>(code); };
  const Command commands[] = {
      {plan, plan_flags.json, [&] { return code_of(RunPlan(plan_flags)); }},
      {load, load_flags.json, [&] { return code_of(RunLoad(load_flags)); }},
      {synth, synth_flags.json, [&] { return code_of(RunSynth(synth_flags)); }},
      {replay, replay_flags.json, [&] { return code_of(RunReplay(replay_flags)); }},
      {report, report_flags.json, [&] { return code_of(RunReport(report_flags)); }},
      {run, false, [&] { return RunRun(run_flags); }},
      {doctor, doctor_flags.json, [&] { return code_of(RunDoctor(doctor_flags)); }},
  };
  const Command& command = *std::find_if(std::begin(commands), std::end(commands), [](const Command& c) { return c.app.parsed(); });
  if (!run.parsed()) CatchInterrupts();  // run hands them on
  int code = code_of(ExitCode::kInternal);
  try {
    code = command.run();
  } catch (const std::system_error& error) {  // fmt's, when a stream takes no more
    return static_cast<int>(Fail(ExitCode::kInternal, fmt::format("the output cannot be written: {}", error.what()), false));
  } catch (const std::exception& error) {
    return static_cast<int>(Fail(ExitCode::kInternal, error.what(), command.json));
  }
  // What was printed may still be on its way: to a full disk, say.
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  return static_cast<int>(Fail(ExitCode::kInternal, "standard output cannot be written; is its disk full?", false));
}

}  // namespace

std::string_view Message(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

ExitCode CodeFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return ExitCode::kUsage;
    case absl::StatusCode::kResourceExhausted:
      return ExitCode::kOutOfMemory;
    case absl::StatusCode::kCancelled:
      return ExitCode::kInterrupted;
    default:
      return ExitCode::kInternal;
  }
}

ExitCode Fail(const absl::Status& status, bool json) { return Fail(CodeFor(status), Message(status), json); }

ExitCode Fail(ExitCode code, std::string_view message, bool json) {
  const Style style(stderr);
  // Where nobody can be told, the exit code alone tells: fmt would throw.
  const std::string text = fmt::format("{} {}\n", style.Bad("gpuledger:"), message);
  std::fputs(text.c_str(), stderr);
  if (json) PrintJson(ErrorJson(static_cast<int>(code), message));
  return code;
}

ExitCode FailToWrite(const absl::Status& status, bool json) {
  return Fail(absl::IsResourceExhausted(status) ? ExitCode::kUsage : CodeFor(status), Message(status), json);
}

}  // namespace gpuledger::cli

int main(int argc, char** argv) { return gpuledger::cli::Main(argc, argv); }
