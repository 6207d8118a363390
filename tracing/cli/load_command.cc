#include <fmt/format.h>

#include <filesystem>

#include "commands.h"
#include "figures.h"
#include "gpuledger/host_upstream.h"
#include "interrupt.h"
#include "json.h"
#include "load_text.h"

namespace gpuledger::cli {
namespace {

// The directory that `out` is to be in.
std::filesystem::path ParentOf(const std::string& out) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(out, error).lexically_normal();
  return path.has_filename() ? path.parent_path() : path.parent_path().parent_path();
}

// Checks what can be checked before a byte is read.
absl::Status CheckOut(const std::string& out) {
  std::error_code error;
  if (out.empty()) return absl::OkStatus();
  if (std::filesystem::exists(std::filesystem::symlink_status(out, error))) {
    return absl::AlreadyExistsError(
        fmt::format("--out {}: exists already, and is not replaced; name a new directory", out));
  }
  if (!std::filesystem::is_directory(ParentOf(out), error)) {
    return absl::NotFoundError(fmt::format("--out {}: the directory it is to be in does not exist", out));
  }
  return absl::OkStatus();
}

// What is written has about the size of what is loaded; that there is no room for it is said before a byte is read.
absl::Status CheckSpace(const LoadPlan& plan, const std::string& out) {
  if (out.empty()) return absl::OkStatus();
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(ParentOf(out), error);
  if (error || space.available >= plan.final_bytes.count()) return absl::OkStatus();
  const Bytes available(uint64_t{space.available});
  return absl::ResourceExhaustedError(
      fmt::format("--out {}: the checkpoint has {}, and its disk has {} left; free {} or name another place", out,
                  Human(plan.final_bytes), Human(available), Human(plan.final_bytes - available)));
}

absl::StatusOr<WrittenCheckpoint> Write(const LoadPlan& plan, const LoadResult& result, const std::string& out) {
  const absl::StatusOr<std::vector<CheckpointTensor>> tensors = result.model.CheckpointTensors();
  if (!tensors.ok()) return tensors.status();
  ProgressBar bar("writing");
  return WriteCheckpoint(*plan.source, out, *tensors, ShowUntilInterrupted(bar));
}

}  // namespace

ExitCode RunLoad(const LoadFlags& flags) {
  absl::StatusOr<LoadOptions> options = OptionsFrom(flags);
  if (!options.ok()) return Fail(options.status(), flags.json);
  if (!flags.plant_fault.empty() && !ParseLoadFault(flags.plant_fault, &options->fault)) {
    return Fail(ExitCode::kUsage,
                fmt::format("--plant-fault {}: residual, staging, audit or ownerless", flags.plant_fault), flags.json);
  }
  if (absl::Status status = CheckOut(flags.out); !status.ok()) return Fail(status, flags.json);
  options->verify = flags.verify;
  absl::StatusOr<std::shared_ptr<const ModelSource>> source = SourceFrom(flags);
  if (!source.ok()) return Fail(source.status(), flags.json);
  HostAnonymousUpstream upstream;
  const absl::StatusOr<LoadPlan> plan = [&] {
    ProgressBar bar("planning");
    return PlanLoad(*std::move(source), *options, upstream.memory_info().free, ShowUntilInterrupted(bar));
  }();
  if (!plan.ok()) return Fail(plan.status(), flags.json);

  if (absl::Status status = CheckSpace(*plan, flags.out); !status.ok()) return FailToWrite(status, flags.json);

  std::FILE* const out = flags.json ? stderr : stdout;
  const Style style(out);
  fmt::print(out, "{}", LoadPromise(*plan, style));
  std::fflush(out);
  absl::StatusOr<LoadResult> result = [&] {
    ProgressBar bar("loading");
    return Load(*plan, upstream, ShowUntilInterrupted(bar));
  }();
  if (!result.ok()) return Fail(result.status(), flags.json);
  fmt::print(out, "{}", LoadProof(*plan, *result, style));

  nlohmann::ordered_json json = LoadJson(*result);
  if (!flags.out.empty() && result->passed()) {
    const absl::StatusOr<WrittenCheckpoint> written = Write(*plan, *result, flags.out);
    if (!written.ok()) return FailToWrite(written.status(), flags.json);
    fmt::print(out, "  {} written to {}, {} other files beside it\n", Human(written->model_bytes), flags.out,
               written->copied.size());
    for (const std::string& left_out : written->left_out) fmt::print(out, "{}\n", style.Dim("  left out: " + left_out));
    if (written->own_layout > 0) {
      std::fflush(out);
      fmt::print(stderr,
                 "gpuledger: {} weights of experts are written in a layout of our own (quant/CHECKPOINT.md), which gpuledger "
                 "loads and transformers does not; for transformers keep them in 16 bit: --skip '**.experts.**'\n",
                 written->own_layout);
    }
    json["out"] = flags.out;
    json["out_bytes"] = written->model_bytes.count();
  }
  if (flags.json) PrintJson(json);
  if (!result->passed()) {
    if (!flags.out.empty())
      fmt::print(stderr, "gpuledger: nothing was written to {}, since an assertion failed\n", flags.out);
    return ExitCode::kAssertion;
  }
  if (options->fault == LoadFault::kNone && !result->as_predicted()) {
    fmt::print(stderr, "gpuledger: the measured peak is not the predicted one, which is an error of this program\n");
    return ExitCode::kInternal;
  }
  return ExitCode::kFine;
}

}  // namespace gpuledger::cli
