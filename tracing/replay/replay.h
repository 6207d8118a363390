// tracing/replay/replay.h - drives a CachingAllocator with a recorded trace, and what that took.
//
// One thread: each row in its place. N threads: the last one frees, the others allocate, each on the streams
// 0, N-1, 2(N-1) ... from its own number on. A thread that allocates waits until all frees of earlier rows are done; the
// one that frees waits until the thread that allocated the block has done all its allocations of earlier rows. With two
// threads the order of the calls is therefore that of the trace; with more, allocations on different streams overlap.
//
// A block whose completion is not the row behind its free was used by another stream: CachingAllocator::RecordStream
// with a side stream, right before the free. On the fake that stream's fence passes at the completion's row; elsewhere
// when it passes. Completions are no calls of the allocator.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "allocation_trace.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/types.h"
#include "replay_device.h"

namespace gpuledger::replay {

// Called now and then from the calling thread, with how many rows are done. False: stop soon.
using RowProgress = std::function<bool(uint64_t done, uint64_t total)>;

struct ReplayOptions {
  Bytes cap = Bytes::Max();
  int threads = 1;
  size_t samples = 0;  // of the timeline, at most; 0: none is kept
};

// The highest figures within one part of the trace's time.
struct Sample {
  double seconds = 0;  // the end of the part
  Bytes reserved, in_use, requested;
};

struct ReplayResult {
  bool completed = false;
  uint64_t stopped_at_line = 0;  // if not: the row that found no memory,
  std::string report;            // and what the allocator said
  Bytes peak_reserved;
  std::array<uint64_t, kUpstreamCallCount> upstream_calls = {};
  double upstream_seconds = 0, upstream_seconds_second_half = 0;  // halves of the trace's time
  double ns_per_event = 0;  // in calls of the allocator, without what the upstream's took, over all allocations and frees
  std::vector<Sample> timeline;
};

// The most that a trace may need for it to be replayed at all: bookkeeping of more would not fit a computer.
inline constexpr Bytes kLargestReplay = Bytes(uint64_t{8} << 40);
inline constexpr int kMostThreads = 256;

// Out of memory is a result. Errors: kCancelled; kDataLoss names the block whose bytes were not what was written there;
// kInternal for a driver's failure or an invariant of the allocator that does not hold.
absl::StatusOr<ReplayResult> Replay(const AllocationTrace& trace, ReplayDevice& device, const ReplayOptions& options,
                                    const RowProgress& progress = {});

// The smallest cap, in steps of 2 MiB, with which the trace completes on the fake, as bisection finds it between the
// peak requested and a peak reserved: that smaller caps fail, and larger ones do, is tried for those it meets.
// kCancelled, and the errors of Replay.
absl::StatusOr<Bytes> SmallestCap(const AllocationTrace& trace, Bytes peak_reserved, int threads,
                                  const RowProgress& progress = {});

}  // namespace gpuledger::replay
