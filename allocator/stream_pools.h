// allocator/stream_pools.h - the two pools of one stream: requests up to 256 KiB, and larger ones, each with addresses of its own.
//
// Beside them: blocks freed by threads that did not get the pool's lock at once. They wait in a list, added to with one
// compare-and-swap, and the next thread that holds the lock puts them back first. So a free never waits.
#pragma once

#include <atomic>
#include <memory>

#include "pool.h"
#include "stream_key.h"

namespace gpuledger {

class StreamPools {
 public:
  StreamPools(StreamKey key, PoolId id, std::unique_ptr<Pool> small, std::unique_ptr<Pool> large)
      : key_(key), id_(id), small_(std::move(small)), large_(std::move(large)) {}

  [[nodiscard]] Stream stream() const { return key_.stream; }
  [[nodiscard]] const StreamKey& key() const { return key_; }
  [[nodiscard]] PoolId id() const { return id_; }  // kSharedPool, or a private pool
  [[nodiscard]] Pool& small() const { return *small_; }
  [[nodiscard]] Pool& large() const { return *large_; }
  [[nodiscard]] Pool& For(Bytes charged) const { return charged <= Pool::kLargestSmall ? *small_ : *large_; }

 private:
  const StreamKey key_;
  const PoolId id_;
  const std::unique_ptr<Pool> small_, large_;
};

}  // namespace gpuledger
