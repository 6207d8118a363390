// allocator/stream_use.h - whose pools these are, and what orders work on their memory.
#pragma once

#include "gpuledger/types.h"
#include "ledger_impl.h"

namespace gpuledger {

// Which stream a handle names: one in every thread, but for the per-thread default stream, which is another one in each.
// Only its thread can record a fence on it or order it after one.
struct StreamKey {
  Stream stream;
  ThreadId thread;  // 0 unless the handle is that of the per-thread stream

  static StreamKey Of(Stream stream) {
    return {stream.Canonical(), stream.per_thread() ? ThisThread() : ThreadId(0)};
  }
  // The stream that a block was allocated on.
  static StreamKey Of(const Charge::Entry& charge) { return {charge.stream, charge.stream.per_thread() ? charge.thread : ThreadId(0)}; }
  // The same, where no thread may call it any more: it may be gone.
  [[nodiscard]] StreamKey OutOfReach() const { return {stream, ThreadId(UINT32_MAX)}; }
  // Whether the calling thread may record a fence on it.
  [[nodiscard]] bool reachable() const { return thread == ThreadId(0) || thread == ThisThread(); }
  friend bool operator==(const StreamKey& a, const StreamKey& b) { return a.stream == b.stream && a.thread == b.thread; }
};

// When what was queued for cached memory is done.
enum class WorkOrder : uint8_t {
  kStream,   // when a fence recorded on the stream has passed
  kUnknown,  // graphs ran on it, or the stream's thread is gone: when the device has been synchronised, and not before
  kNone,     // now: it was waited for
};

struct StreamUse {
  StreamKey key;
  PoolId id;  // kSharedPool, or a private pool
  WorkOrder order = WorkOrder::kStream;

  // Whether a captured graph may use the cached memory at any time: it is a private pool's that was not released.
  [[nodiscard]] bool kept() const { return id != PoolId(0) && order == WorkOrder::kStream; }
  // Whether the calling thread can find out, by a fence at most.
  [[nodiscard]] bool orderly() const { return order == WorkOrder::kNone || (order == WorkOrder::kStream && key.reachable()); }
};

}  // namespace gpuledger
