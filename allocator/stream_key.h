// allocator/stream_key.h - which stream a handle names.
//
// A handle names one stream in every thread, but for the per-thread default stream, which is another one in each: the
// thread belongs to its key, and only that thread can record a fence on it. The handles 0 and 1 both name the legacy stream.
#pragma once

#include "gpuledger/types.h"
#include "ledger_impl.h"

namespace gpuledger {

struct StreamKey {
  Stream stream;
  ThreadId thread;  // 0 unless the handle is that of the per-thread stream

  static StreamKey Of(Stream stream) { return {stream, stream.per_thread() ? ThisThread() : ThreadId(0)}; }
  // Whether the calling thread may record a fence on it, and order it after one.
  [[nodiscard]] bool reachable() const { return thread == ThreadId(0) || thread == ThisThread(); }
  friend bool operator==(const StreamKey& a, const StreamKey& b) { return a.stream == b.stream && a.thread == b.thread; }
  template <class H>
  friend H AbslHashValue(H state, const StreamKey& key) {
    return H::combine(std::move(state), key.stream, key.thread);
  }
};

}  // namespace gpuledger
