// tracing/leak_lines.h - what a report has found, as its text shows it: weights that differ only in their layer on one line.
#pragma once

#include <vector>

#include "gpuledger/leak_report.h"

namespace gpuledger {

// Groups alike in all but the layer in their owner's name, and in their holders', as one: "layers.{0-31}.up.weight". Errors
// first, then by bytes.
std::vector<LeakGroup> OverLayers(const std::vector<LeakGroup>& groups);
std::vector<PeakShare> OverLayers(const std::vector<PeakShare>& shares);

}  // namespace gpuledger
