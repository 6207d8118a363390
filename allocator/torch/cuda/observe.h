// allocator/torch/cuda/observe.h - the way in that replaces nothing: PyTorch's native CUDA allocator goes on, and tells.
//
// A trace tracker is called for each allocation, free, segment and out-of-memory, on the thread that caused it, while the
// allocator's lock of that device is held. Owner and call stack are those of the thread. Nothing here takes the GIL (another
// thread may hold it and wait for that lock), allocates memory of a device, or throws.
//
// The tracker tells what was asked for, not the size of the block, which memory_allocated() counts: a block from the cache may be
// larger, up to 1 MiB, and not worth splitting. That size is told to profilers alone, on the same thread and under the same
// lock, right after the tracker. So a profiler is pushed for that one report, which passes on to the one below.
#pragma once

#include <absl/status/status.h>

namespace gpuledger::pytorch {

// Attaches to every device; what is alive is taken over as `unattributed`. A second call changes nothing. kFailedPrecondition,
// with a sentence, before CUDA is initialised and where another allocator serves it. Synchronises nothing. Thread-safe.
absl::Status ObserveCuda();
[[nodiscard]] bool ObservingCuda();

}  // namespace gpuledger::pytorch
