#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>

#include "commands.h"
#include "figures.h"
#include "gpuledger/allocator.h"
#include "gpuledger/synth.h"
#include "interrupt.h"
#include "json.h"
#include "terminal.h"

namespace gpuledger::cli {
namespace {

using nlohmann::ordered_json;

ExitCode ListShapes(bool json) {
  size_t width = 0;
  for (const SynthShape& shape : SynthShapes()) width = std::max(width, shape.name.size());
  ordered_json shapes = ordered_json::array();
  for (const SynthShape& shape : SynthShapes()) {
    fmt::print(json ? stderr : stdout, "  {:<{}}  {}\n", shape.name, width, shape.description);
    shapes.push_back({{"name", shape.name}, {"description", shape.description}});
  }
  if (json) PrintJson({{"shapes", std::move(shapes)}});
  return ExitCode::kFine;
}

}  // namespace

void AddSynthFlags(CLI::App& command, SynthFlags& flags) {
  command.add_option("SHAPES", flags.shapes, "A known model (--list), or the path of a config.json");
  command.add_option("--out", flags.out, "Directory to write, which must not exist yet");
  command.add_option("--seed", flags.seed, "Values depend on this, a tensor's name and the position in it")
      ->check(WholeNumber())
      ->capture_default_str();
  command.add_option("--shard-size", flags.shard_size, "A file holds at most this, but at least one tensor")
      ->capture_default_str();
  command.add_flag("--list", flags.list, "Print the known models");
  command.add_flag("--json", flags.json, "One JSON object on stdout; text for people on stderr");
}

ExitCode RunSynth(const SynthFlags& flags) {
  if (flags.list) return ListShapes(flags.json);
  if (flags.shapes.empty())
    return Fail(ExitCode::kUsage, "SHAPES is missing; --list prints the known ones", flags.json);
  if (flags.out.empty()) return Fail(ExitCode::kUsage, "--out is missing: the directory to write", flags.json);
  const absl::StatusOr<Bytes> shard_size = ParseBytes(flags.shard_size);
  if (!shard_size.ok()) {
    return Fail(ExitCode::kUsage, fmt::format("--shard-size: {}", Message(shard_size.status())), flags.json);
  }
  const absl::StatusOr<std::shared_ptr<const ModelSource>> source = SynthModel(flags.shapes, flags.seed);
  if (!source.ok()) return Fail(source.status(), flags.json);
  Bytes bytes;
  uint64_t parameters = 0;
  for (const TensorInfo& tensor : (*source)->tensors()) {
    bytes += tensor.size;
    parameters += tensor.elements;
  }

  const auto start = std::chrono::steady_clock::now();
  const absl::Status written = [&] {
    ProgressBar bar("writing");
    return WriteModelDirectory(**source, flags.out, {.shard_size = *shard_size}, ShowUntilInterrupted(bar));
  }();
  if (!written.ok()) return FailToWrite(written, flags.json);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const size_t tensors = (*source)->tensors().size();
  fmt::print(flags.json ? stderr : stdout, "  {} written to {}: {} tensors, seed {}, in {:.2f} s ({:.2f} GB/s)\n",
             Human(bytes), flags.out, tensors, flags.seed, took.count(),
             static_cast<double>(bytes.count()) / 1e9 / took.count());
  if (flags.json) {
    PrintJson({{"shapes", flags.shapes},
               {"out", flags.out},
               {"seed", flags.seed},
               {"tensors", tensors},
               {"parameters", parameters},
               {"bytes", bytes.count()},
               {"seconds", took.count()}});
  }
  return ExitCode::kFine;
}

}  // namespace gpuledger::cli
