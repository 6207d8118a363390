// cli/commands.h - the subcommands: what their flags say, and what they answer the shell.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gpuledger/plan.h"

namespace CLI {
class App;
class Validator;
}

namespace gpuledger::cli {

// What a command exits with (README.md).
enum class ExitCode : int {
  kFine = 0,
  kInternal = 1,     // an internal error, or a check that could not be made
  kUsage = 2,        // usage or bad input
  kAssertion = 3,    // residual, staging budget, plan audit, ownerless bytes
  kOutOfMemory = 4,  // or over the cap
  kLeaks = 23,       // with --check
  kInterrupted = 130,  // by Ctrl-C, as shells have it
};

// The flags that plan and load share, as they were typed.
struct ModelFlags {
  std::string model;   // empty with --source
  std::string source;  // "synth:NAME"; empty: none
  std::string quant = "nf4";
  std::string device = "cpu";
  std::string slot_size = "8MiB";
  std::string cap;  // empty: none
  std::vector<std::string> skip, only;
  uint64_t block = 64;
  uint64_t slots = 2;
  uint64_t threads = 0;
  uint64_t seed = 0;
  bool double_quant = false;
  bool json = false;
};

struct PlanFlags : ModelFlags {
  bool all = false;
};

struct LoadFlags : ModelFlags {
  std::string out;          // empty: nothing is written
  std::string plant_fault;  // empty: none
  bool verify = false;
};

struct SynthFlags {
  std::string shapes;
  std::string out;
  std::string shard_size = "5GiB";
  uint64_t seed = 0;
  bool list = false;
  bool json = false;
};

struct ReplayFlags {
  std::string trace;
  std::string upstream = "fake";
  std::string cap;   // empty: none
  std::string plot;  // empty: none
  uint64_t threads = 1;
  bool min_cap = false;
  bool json = false;
};

struct ReportFlags {
  std::string trace;
  std::string suppressions;  // a file; empty: none
  uint32_t growth_warmup = 3;
  bool blocks = false;
  bool check = false;
  bool redact = false;
  bool json = false;
};

struct RunFlags : ReportFlags {
  std::vector<std::string> program;
  std::string output;  // empty: by the program's name
  std::string stacks = "all";
  std::string limit;
  std::string attach = "torch";
  std::string way;  // into CUDA memory; empty: GPULEDGER_TORCH, else allocator
  bool no_report = false;
};

struct DoctorFlags {
  bool json = false;
};

ExitCode RunPlan(const PlanFlags& flags);
ExitCode RunLoad(const LoadFlags& flags);
ExitCode RunSynth(const SynthFlags& flags);
ExitCode RunReplay(const ReplayFlags& flags);
ExitCode RunReport(const ReportFlags& flags);
int RunRun(const RunFlags& flags);  // the program's own code, or an ExitCode
ExitCode RunDoctor(const DoctorFlags& flags);

void AddSynthFlags(CLI::App& command, SynthFlags& flags);
void AddReplayFlags(CLI::App& command, ReplayFlags& flags);
void AddReportFlags(CLI::App& command, ReportFlags& flags);
void AddRunFlags(CLI::App& command, RunFlags& flags);

// Digits alone: CLI11 would take -1 for a very large number.
CLI::Validator WholeNumber();
void AddModelFlags(CLI::App& command, ModelFlags& flags);
// What the flags say, checked. kInvalidArgument with a sentence for what this build cannot do.
absl::StatusOr<LoadOptions> OptionsFrom(const ModelFlags& flags);
// The model that MODEL or --source names, open.
absl::StatusOr<std::shared_ptr<const ModelSource>> SourceFrom(const ModelFlags& flags);

// Where MODEL is: a directory, or a name in the local Hugging Face cache (its snapshot of `main`). kNotFound otherwise.
absl::StatusOr<std::string> ModelDirectory(const std::string& model);

ExitCode CodeFor(const absl::Status& status);
// Says on stderr what went wrong, with --json also on stdout, and returns the code.
ExitCode Fail(const absl::Status& status, bool json);
ExitCode Fail(ExitCode code, std::string_view message, bool json);
// The same for output: a full disk is the caller's to mend, and no memory error.
ExitCode FailToWrite(const absl::Status& status, bool json);
// The status's sentence. Debian's absl::string_view is not std's.
std::string_view Message(const absl::Status& status);

}  // namespace gpuledger::cli
