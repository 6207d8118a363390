// gpuledger/symbolise.h - names and lines of native frames, found when a report is made.
#pragma once

#include <vector>

#include "gpuledger/trace_reader.h"

namespace gpuledger {

// Fills in function, file and line of native frames, from the modules' files with their build ids; a frame whose module is not
// here, or is another build, keeps module and offset. Thread-safe.
GPULEDGER_EXPORT void Symbolise(std::vector<TraceFrame>& frames);

}  // namespace gpuledger
