// quant/synth_shapes.h - the models that are known by name: the text of their config.json.
#pragma once

#include <string_view>

namespace gpuledger {

// Empty if no model has that name. Every name is in SynthShapes (synth.h).
std::string_view KnownConfig(std::string_view name);

}  // namespace gpuledger
