// The options: one table names, parses and explains each; everything else (environment, messages) is read from it.
#include <charconv>

#include <fmt/format.h>

#include "gpuledger/allocator.h"

extern char** environ;

namespace gpuledger {
namespace {

struct Option {
  std::string_view variable;
  std::string_view values;
  absl::Status (*parse)(std::string_view text, AllocatorOptions& options);
};

absl::Status ParseCap(std::string_view text, AllocatorOptions& options) {
  absl::StatusOr<Bytes> cap = ParseBytes(text);
  if (cap.ok()) options.cap = *cap;
  return cap.status();
}

absl::Status ParseOnMisuse(std::string_view text, AllocatorOptions& options) {
  if (text == "abort") return options.on_misuse = OnMisuse::kAbort, absl::OkStatus();
  if (text == "warn") return options.on_misuse = OnMisuse::kWarn, absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("'{}' is neither abort nor warn", text));
}

absl::Status ParseReportOwners(std::string_view text, AllocatorOptions& options) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), options.report_owners);
  if (error == std::errc() && end == text.data() + text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("'{}' is not a count", text));
}

absl::Status ParseReleaseAfter(std::string_view text, AllocatorOptions& options) {
  uint64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds > 1'000'000'000) {
    return absl::InvalidArgumentError(fmt::format("'{}' is not a number of seconds", text));
  }
  options.release_after = std::chrono::seconds(seconds);
  return absl::OkStatus();
}

// Read at load, where nobody could be told of a mistake.
absl::Status ParseStacks(std::string_view text, AllocatorOptions&) {
  if (text == "none" || text == "native" || text == "python" || text == "all") return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("'{}' is no kind of stacks", text));
}

constexpr Option kOptions[] = {
    {"GPULEDGER_CAP", "a size such as 8GiB: reserved never exceeds it", ParseCap},
    {"GPULEDGER_ON_MISUSE", "abort or warn: what a double free or a foreign pointer does", ParseOnMisuse},
    {"GPULEDGER_RELEASE_AFTER", "seconds: cached memory that was not used for so long is given back at the next growth; 0: never",
     ParseReleaseAfter},
    {"GPULEDGER_REPORT_OWNERS", "a count: how many owners a report names", ParseReportOwners},
    {"GPULEDGER_STACKS", "none, native, python or all: what of the call stack an allocation is recorded with", ParseStacks},
};

// Read by other parts of the project, and so known here too (tests/test_boundaries.py: none is missing).
constexpr std::string_view kElsewhere[] = {"GPULEDGER_ATTACH", "GPULEDGER_BINARY", "GPULEDGER_FAKE_CUDA", "GPULEDGER_FUZZ_SECONDS",
                                           "GPULEDGER_GPU_OPERATIONS", "GPULEDGER_GPU_ROUNDS", "GPULEDGER_LIBRARY",
                                           "GPULEDGER_MODEL_OPERATIONS", "GPULEDGER_MODEL_SEED", "GPULEDGER_TEST_ALLOCATOR", "GPULEDGER_TEST_CUDA",
                                           "GPULEDGER_SCALE_MINIMISE_SECONDS", "GPULEDGER_SCALE_OPERATIONS",
                                           "GPULEDGER_TEST_CUDART", "GPULEDGER_TEST_SEED", "GPULEDGER_TORCH",
                                           "GPULEDGER_TORCH_CUDA_LIBRARY", "GPULEDGER_TORCH_LIBRARY",
                                           "GPULEDGER_TRACE", "GPULEDGER_TRACE_LIMIT", "GPULEDGER_TRACES"};

std::string KnownVariables() {
  std::string text;
  for (const Option& option : kOptions) text += fmt::format("\n  {} = {}", option.variable, option.values);
  return text;
}

}  // namespace

absl::StatusOr<AllocatorOptions> AllocatorOptions::FromEnvironment() {
  AllocatorOptions options;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view assignment(*entry);
    const size_t equals = assignment.find('=');
    const std::string_view name = assignment.substr(0, equals);
    if (name.substr(0, 10) != "GPULEDGER_" || equals == std::string_view::npos) continue;
    bool known = false;
    for (const Option& option : kOptions) {
      if (option.variable != name) continue;
      known = true;
      if (absl::Status s = option.parse(assignment.substr(equals + 1), options); !s.ok()) {
        return absl::InvalidArgumentError(fmt::format("{}: {}; it takes {}", name, std::string(s.message()), option.values));
      }
    }
    for (const std::string_view elsewhere : kElsewhere) known = known || elsewhere == name;
    if (!known) return absl::InvalidArgumentError(fmt::format("{} is not a variable of gpuledger; known are:{}", name, KnownVariables()));
  }
  return options;
}

absl::StatusOr<Bytes> ParseBytes(std::string_view text) {
  struct Unit {
    std::string_view name;
    uint64_t bytes;
  };
  constexpr Unit kUnits[] = {{"", 1},           {"B", 1},
                             {"KiB", 1u << 10}, {"MiB", 1u << 20},     {"GiB", 1u << 30},           {"TiB", uint64_t{1} << 40},
                             {"kB", 1000},      {"KB", 1000},          {"MB", 1000000},             {"GB", 1000000000},
                             {"TB", 1000000000000}};
  const auto bad = [text] {
    return absl::InvalidArgumentError(fmt::format("'{}' is not a size; sizes look like 4096, 8MiB, 1.5GiB or 2GB", text));
  };
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !(number >= 0)) return bad();
  std::string_view unit_name(end, static_cast<size_t>(text.data() + text.size() - end));
  while (!unit_name.empty() && unit_name[0] == ' ') unit_name.remove_prefix(1);
  for (const Unit& unit : kUnits) {
    if (unit.name != unit_name) continue;
    uint64_t whole = 0;  // whole numbers stay exact; a double has 53 bits
    if (const auto exact = std::from_chars(text.data(), end, whole); exact.ptr == end && exact.ec == std::errc()) {
      if (whole > UINT64_MAX / unit.bytes) return bad();
      return Bytes(whole * unit.bytes);
    }
    const double bytes = number * static_cast<double>(unit.bytes);
    if (bytes >= 9.2e18) return bad();
    return Bytes(static_cast<uint64_t>(bytes));
  }
  return bad();
}

}  // namespace gpuledger
