// The flags that plan and load share, and what they say.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "gpuledger/allocator.h"
#include "gpuledger/synth.h"

namespace gpuledger::cli {
namespace {

absl::StatusOr<Bytes> SizeFrom(std::string_view flag, const std::string& text) {
  absl::StatusOr<Bytes> size = ParseBytes(text);
  if (!size.ok()) return absl::InvalidArgumentError(fmt::format("{}: {}", flag, Message(size.status())));
  return size;
}

absl::Status CheckDevice(const std::string& device) {
  if (device == "cpu") return absl::OkStatus();
  if (device.starts_with("cuda") && (device.size() == 4 || device[4] == ':')) {
    return absl::InvalidArgumentError(fmt::format(
        "--device {}: this build has no CUDA upstream yet; --device cpu loads into host memory", device));
  }
  return absl::InvalidArgumentError(fmt::format("--device {}: no such device; cpu is one", device));
}

}  // namespace

CLI::Validator WholeNumber() {
  const auto check = [](const std::string& text) {
    const bool whole = !text.empty() && text.size() < 20 && text.find_first_not_of("0123456789") == text.npos;
    return whole ? std::string() : text + ": a whole number, 0 or more";
  };
  return CLI::Validator(check, "", "whole number");
}

void AddModelFlags(CLI::App& command, ModelFlags& flags) {
  command.add_option("MODEL", flags.model, "Directory of a model, or its name in the local Hugging Face cache");
  command.add_option("--source", flags.source, "In place of MODEL: synth:NAME, shapes with random weights and no disk");
  command.add_option("--seed", flags.seed, "Of the random weights of --source")
      ->check(WholeNumber())
      ->capture_default_str();
  command.add_option("--quant", flags.quant, "4-bit format: nf4 or fp4")->capture_default_str();
  command.add_option("--block", flags.block, "Elements that share a scale: 32, 64, ... 4096")
      ->check(WholeNumber())
      ->capture_default_str();
  command.add_flag("--double-quant", flags.double_quant, "Quantize the scales as well, to 8 bits");
  command.add_option("--skip", flags.skip, "Keep weights whose name matches GLOB as they are: * within a name, ** across")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command.add_option("--only", flags.only, "Quantize only weights whose name matches GLOB")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command.add_option("--slots", flags.slots, "Staging slots, held while weights are quantized")
      ->check(WholeNumber())
      ->capture_default_str();
  command.add_option("--slot-size", flags.slot_size, "Size of a slot, at most")->capture_default_str();
  command.add_option("--threads", flags.threads, "That read and quantize; 0: one for each slot, as far as there are cores")
      ->check(WholeNumber())
      ->capture_default_str();
  command.add_option("--cap", flags.cap, "Reserve no more than this, as in 1.5GiB");
  command.add_option("--device", flags.device, "Where the weights go: cpu")->capture_default_str();
  command.add_flag("--json", flags.json, "One JSON object on stdout; text for people on stderr");
}

absl::StatusOr<LoadOptions> OptionsFrom(const ModelFlags& flags) {
  LoadOptions options;
  if (!ParseQuantType(flags.quant, &options.format.type)) {
    return absl::InvalidArgumentError(fmt::format("--quant {}: no such format; nf4 and fp4 are", flags.quant));
  }
  if (!IsBlockSize(flags.block)) {
    return absl::InvalidArgumentError(fmt::format("--block {}: a block has 32, 64, 128, ... or 4096 elements", flags.block));
  }
  options.format.block = static_cast<uint32_t>(flags.block);
  options.format.double_quant = flags.double_quant;
  if (absl::Status status = CheckDevice(flags.device); !status.ok()) return status;
  options.slots = flags.slots;
  options.threads = flags.threads;
  options.skip = flags.skip;
  options.only = flags.only;
  const absl::StatusOr<Bytes> slot_size = SizeFrom("--slot-size", flags.slot_size);
  if (!slot_size.ok()) return slot_size.status();
  options.slot_size = *slot_size;
  if (flags.cap.empty()) return options;
  const absl::StatusOr<Bytes> cap = SizeFrom("--cap", flags.cap);
  if (!cap.ok()) return cap.status();
  options.cap = *cap;
  return options;
}

absl::StatusOr<std::shared_ptr<const ModelSource>> SourceFrom(const ModelFlags& flags) {
  constexpr std::string_view kSynth = "synth:";
  if (flags.model.empty() == flags.source.empty()) {
    return absl::InvalidArgumentError("name one model: MODEL, a directory or a Hub name, or --source synth:NAME");
  }
  if (flags.source.starts_with(kSynth)) return SynthModel(flags.source.substr(kSynth.size()), flags.seed);
  if (!flags.source.empty()) {
    return absl::InvalidArgumentError(fmt::format("--source {}: the only kind of source is synth:NAME", flags.source));
  }
  const absl::StatusOr<std::string> directory = ModelDirectory(flags.model);
  if (!directory.ok()) return directory.status();
  return OpenModel(*directory);
}

}  // namespace gpuledger::cli
