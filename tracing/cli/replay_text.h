// cli/replay_text.h - what `gpuledger replay` says to people, and its object of --json.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "replay.h"
#include "terminal.h"

namespace gpuledger::cli {

// What was replayed, how, and what came of it.
struct Replayed {
  const replay::AllocationTrace& trace;
  std::string upstream;
  int threads;
  std::optional<Bytes> cap;
  replay::ReplayResult result;
  std::optional<Bytes> min_cap;

  // A part of the trace's peak: 1.025.
  [[nodiscard]] double Ratio(Bytes size) const {
    return static_cast<double>(size.count()) / static_cast<double>(trace.peak_requested.count());
  }
};

std::string ReplayText(const Replayed& replayed, const Style& style);
nlohmann::ordered_json ReplayJson(const Replayed& replayed);

}  // namespace gpuledger::cli
