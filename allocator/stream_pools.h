// allocator/stream_pools.h - the two pools of one stream: requests up to 256 KiB, and larger ones, each with addresses of its own.
//
// Where ranges come with their memory there are no such pools: `small` and `large` are null, and a stream's blocks lie in
// as many whole ranges as it needed (whole_ranges.cc). When a stream is retired its pools go to the next new stream, with
// the thread caches that were theirs.
#pragma once

#include "pool.h"
#include "stream_use.h"

namespace gpuledger {

struct StreamPools {
  StreamUse use{.key = {Stream::Default(DeviceId(0)), ThreadId(0)}, .id = PoolId(0), .order = WorkOrder::kNone};
  Pool* small = nullptr;
  Pool* large = nullptr;
  // Of a private pool, which may outlive its stream: that was retired, and none with its handle has come since. Guarded by growth.
  bool stream_is_gone = false;
  bool retired = true;  // no stream's now: to be used for another one; guarded by growth

  [[nodiscard]] Pool& For(Bytes charged) const { return charged <= Pool::kLargestSmall ? *small : *large; }
  // The other one: what it has free serves too before a request fails.
  [[nodiscard]] Pool& Beside(Bytes charged) const { return charged <= Pool::kLargestSmall ? *large : *small; }
};

}  // namespace gpuledger
