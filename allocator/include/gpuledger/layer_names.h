// gpuledger/layer_names.h - weights that differ only in their layer, on one line of a report.
//
// Pure functions on text: thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gpuledger/types.h"

namespace gpuledger {

// "layers.3.up.weight" as {"layers.{}.up.weight", "3"}: the first part that is a number names the layer, later ones
// stay. The name itself and "" if there is none.
GPULEDGER_EXPORT std::pair<std::string, std::string> SplitLayer(std::string_view name);
// The other way, for several layers, the numbers as ranges: "layers.{0-2,7}.up.weight", "layers.3.up.weight".
GPULEDGER_EXPORT std::string JoinLayers(std::string_view pattern, const std::vector<std::string>& layers);

}  // namespace gpuledger
