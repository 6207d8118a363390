// gpuledger/progress.h - how long work tells where it is, and is told to stop.
#pragma once

#include <functional>

#include "gpuledger/types.h"

namespace gpuledger {

// Called now and then, from the thread that called the long function. False: stop soon, undo everything, and return
// kCancelled. An empty function never stops.
using Progress = std::function<bool(Bytes done, Bytes total)>;

}  // namespace gpuledger
