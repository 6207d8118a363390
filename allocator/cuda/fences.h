// allocator/cuda/fences.h - fences as CUDA events: pooled, numbered per stream, and asked as seldom as possible.
//
// Events recorded on one stream pass in the order of their recording. So each stream remembers up to which of its
// fences all have passed, and one question answers for all that came before. A stream is known by its id, not by its
// handle: handles are used again when streams are destroyed, and the handle of the per-thread stream means another one
// in each thread. Where the driver has no ids (before CUDA 12), each fence is asked for itself. Thread-safe, under one
// mutex of its own: no fence waits for a mapping to be made. Wait does not hold it.
#pragma once

#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "context.h"
#include "gpuledger/upstream.h"
#include "sync.h"

namespace gpuledger::cuda {

class Fences {
 public:
  Fences(const PrimaryContext& context, DeviceId device) : context_(context), device_(device) {}
  ~Fences();  // destroys all events, whatever became of their fences
  Fences(const Fences&) = delete;
  Fences& operator=(const Fences&) = delete;

  // The contracts are those of Upstream (gpuledger/upstream.h).
  absl::StatusOr<FenceId> Record(Stream stream);
  absl::StatusOr<bool> Poll(FenceId fence);
  std::vector<FenceId> Passed(std::span<const FenceId> fences);
  absl::Status Wait(FenceId fence);
  absl::Status MakeStreamWait(Stream stream, FenceId fence);
  void Drop(FenceId fence);

 private:
  struct StreamState {
    uint64_t recorded = 0;  // the number of the last fence
    uint64_t passed = 0;    // every fence up to this number has passed
    uint64_t live = 0;      // fences; without any, nothing need be remembered
  };
  struct Fence {
    Event event;
    std::optional<uint64_t> stream;  // its id, if the driver has ids
    uint64_t number;                 // in the order of the stream's fences, from 1
    bool passed = false;
    bool dropped = false;
    uint32_t waiters = 0;  // threads inside Wait: the event is not used again before they are out
  };
  using Map = std::unordered_map<uint64_t, Fence>;  // by the fence's id; references stay good while others come and go

  absl::Status CheckStream(Stream stream, std::string_view what) const;
  // A fence inside a capture would become part of the graph and never pass; a foreign one would break the capture.
  absl::Status CheckNotCapturing(Stream stream, std::string_view what) const;
  absl::StatusOr<Map::iterator> Find(FenceId fence) GPULEDGER_REQUIRES(mutex_);
  absl::StatusOr<Event> TakeEvent() GPULEDGER_REQUIRES(mutex_);
  [[nodiscard]] bool KnownToHavePassed(const Fence& fence) GPULEDGER_REQUIRES(mutex_);
  void NotePassed(Fence& fence) GPULEDGER_REQUIRES(mutex_);
  absl::StatusOr<bool> Ask(Fence& fence) GPULEDGER_REQUIRES(mutex_);
  // Asks until it is known which of `fences`, all of one stream and sorted by number, have passed.
  void AskInOrder(std::span<Fence* const> fences) GPULEDGER_REQUIRES(mutex_);
  void Retire(Map::iterator fence) GPULEDGER_REQUIRES(mutex_);

  const PrimaryContext& context_;
  const DeviceId device_;
  Mutex mutex_;
  Map fences_ GPULEDGER_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, StreamState> streams_ GPULEDGER_GUARDED_BY(mutex_);  // by id
  std::vector<Event> idle_ GPULEDGER_GUARDED_BY(mutex_);
  uint64_t last_fence_ GPULEDGER_GUARDED_BY(mutex_) = 0;
};

}  // namespace gpuledger::cuda
