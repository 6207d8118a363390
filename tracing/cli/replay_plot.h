// cli/replay_plot.h - a picture of what was reserved, in use and requested over a trace's time, drawn by gnuplot.
#pragma once

#include <absl/status/status.h>

#include <string>

#include "replay_text.h"

namespace gpuledger::cli {

// How many samples a picture shows: about its width in points.
inline constexpr size_t kPlotSamples = 1600;

// Whether a picture can be drawn there: kInvalidArgument for a name that ends in neither .png nor .svg, kUnavailable with
// the remedy where there is no gnuplot. To be asked before the work.
absl::Status CheckPlot(const std::string& path);
// An existing file is replaced, once the picture is whole.
absl::Status WritePlot(const Replayed& replayed, const std::string& path);

}  // namespace gpuledger::cli
