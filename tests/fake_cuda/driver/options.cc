#include "options.h"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <string_view>

extern char** environ;

namespace fake_cuda {
namespace {

bool ParseNumber(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool ParseSize(std::string_view text, uint64_t& value) {
  constexpr std::pair<std::string_view, int> kUnits[] = {{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}};
  int shift = 0;
  for (const auto& [unit, bits] : kUnits) {
    if (text.ends_with(unit)) {
      text.remove_suffix(unit.size());
      shift = bits;
      break;
    }
  }
  if (!ParseNumber(text, value) || value > (UINT64_MAX >> shift)) return false;
  value <<= shift;
  return true;
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(separator, at), text.size());
    if (end > at) parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

bool ReadMemory(const std::string& text, Options& options, std::string& problem) {
  constexpr uint64_t kLargest = uint64_t{4} << 40;
  if (ParseSize(text, options.memory) && options.memory >= kGranule && options.memory <= kLargest) {
    options.memory -= options.memory % kGranule;
    return true;
  }
  problem = "is no size such as 24GiB, from 2MiB to 4TiB";
  return false;
}

bool ReadDevices(const std::string& text, Options& options, std::string& problem) {
  uint64_t count = 0;
  if (!ParseNumber(text, count) || count > 64) return problem = "is no number of devices from 0 to 64", false;
  options.devices = int(count);
  return true;
}

bool ReadCapability(const std::string& text, Options& options, std::string& problem) {
  const std::vector<std::string> parts = Split(text, '.');
  uint64_t major = 0, minor = 0;
  if (parts.size() != 2 || !ParseNumber(parts[0], major) || !ParseNumber(parts[1], minor) || major > 99 || minor > 9) {
    return problem = "is no compute capability such as 9.0", false;
  }
  options.major = int(major);
  options.minor = int(minor);
  return true;
}

bool ReadChoice(const std::string& text, const char* yes, const char* no, bool& value, std::string& problem) {
  if (text != yes && text != no) return problem = fmt::format("is neither {} nor {}", yes, no), false;
  value = text == yes;
  return true;
}

bool ReadLatency(const std::string& text, Options& options, std::string& problem) {
  // Nanoseconds a call, measured on one H200: plain and stream-ordered allocation, fresh 2 MiB.
  static const std::map<std::string, uint64_t> kMeasured = {
      {"cuMemAlloc", 30000},  {"cuMemFree", 26000},        {"cuMemAllocAsync", 310},     {"cuMemFreeAsync", 310},
      {"cuEventRecord", 220}, {"cuEventQuery", 160},       {"cuStreamWaitEvent", 190},   {"cuMemGetInfo", 4000},
      {"cuStreamGetId", 60},  {"cuStreamIsCapturing", 60}, {"cuMemPoolGetAttribute", 60}};
  for (const std::string& part : Split(text, ',')) {
    if (part == "measured") {
      options.latency_ns.insert(kMeasured.begin(), kMeasured.end());
      continue;
    }
    const std::vector<std::string> sides = Split(part, '=');
    uint64_t ns = 0;
    if (sides.size() != 2 || !ParseNumber(sides[1], ns)) {
      return problem = fmt::format("has '{}', which is neither measured nor cuMemAlloc=30000 (ns)", part), false;
    }
    options.latency_ns[sides[0]] = ns;
  }
  return true;
}

bool ReadOne(const std::string& name, const std::string& text, Options& options, std::string& problem) {
  if (name == "MEMORY") return ReadMemory(text, options, problem);
  if (name == "DEVICES") return ReadDevices(text, options, problem);
  if (name == "CAPABILITY") return ReadCapability(text, options, problem);
  if (name == "MISUSE") return ReadChoice(text, "abort", "error", options.misuse_aborts, problem);
  if (name == "CAPTURE_MISUSE") return ReadChoice(text, "abort", "error", options.capture_misuse_aborts, problem);
  if (name == "HOLD_EVENTS") return ReadChoice(text, "1", "0", options.hold_events, problem);
  if (name == "PEERS") return ReadChoice(text, "1", "0", options.peers, problem);
  if (name == "TRACE") return options.trace = text, true;
  if (name == "FAULTS") return ParseFaults(text, options.faults, problem);
  if (name == "LATENCY") return ReadLatency(text, options, problem);
  if (name.starts_with("RUNTIME_") || name.starts_with("CUBLAS")) return true;  // read by the libraries above
  problem =
      "is unknown; known are FAKE_CUDA_MEMORY, DEVICES, CAPABILITY, MISUSE, CAPTURE_MISUSE, HOLD_EVENTS, PEERS, TRACE, FAULTS "
      "and "
      "LATENCY";
  return false;
}

}  // namespace

bool ParseFaults(const std::string& text, std::vector<Fault>& faults, std::string& problem) {
  for (const std::string& part : Split(text, ',')) {
    const size_t colon = part.find(':'), equals = part.rfind('=');
    Fault fault{.function = part.substr(0, colon), .call = 0, .when = Fault::When::kOnce, .error = 0};
    uint64_t error = 0;
    std::string_view which;
    if (colon != std::string::npos && equals != std::string::npos && equals > colon) {
      which = std::string_view(part).substr(colon + 1, equals - colon - 1);
    }
    if (which.starts_with('*')) {
      fault.when = Fault::When::kEvery;
      which.remove_prefix(1);
    } else if (which.ends_with('+')) {
      fault.when = Fault::When::kFrom;
      which.remove_suffix(1);
    }
    if (!ParseNumber(which, fault.call) || fault.call == 0 || fault.function.empty() ||
        !ParseNumber(std::string_view(part).substr(equals + 1), error) || error == 0 || error > 999) {
      return problem = fmt::format("has '{}', which is no fault such as cuMemCreate:3=2, :3+=2 or :*3=2", part), false;
    }
    fault.error = int(error);
    faults.push_back(fault);
  }
  return true;
}

bool Options::Read(Options& options, std::string& problem) {
  constexpr std::string_view kPrefix = "FAKE_CUDA_";
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view variable(*entry);
    const size_t equals = variable.find('=');
    if (!variable.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    const std::string name(variable.substr(kPrefix.size(), equals - kPrefix.size()));
    if (!ReadOne(name, std::string(variable.substr(equals + 1)), options, problem)) {
      problem = fmt::format("{} {}", variable, problem);
      return false;
    }
  }
  return true;
}

}  // namespace fake_cuda
