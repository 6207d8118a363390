// allocator/cuda/graph_pools.h - PyTorch's private pools of one device: which are being filled, by which streams, and how
// many graphs use each. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include <absl/status/status.h>

#include "gpuledger/allocator.h"
#include "sync.h"

namespace gpuledger::cuda {

class GraphPools {
 public:
  using Id = std::pair<unsigned long long, unsigned long long>;  // c10's MempoolId_t
  using Uses = std::function<bool(CUstream_st*)>;                // may throw

  explicit GraphPools(CachingAllocator& allocator) : allocator_(allocator) {}

  // Streams that `uses` is true of fill the pool from now on; it is used once more. kFailedPrecondition if it is being filled.
  absl::Status Begin(Id id, Uses uses);
  // kNotFound if it is not being filled. No filter of it is called any more.
  absl::Status End(Id id);
  // Used once less; released at the last. kNotFound if there is none.
  absl::Status Release(Id id);

  // Where memory for this stream comes from. Costs nothing while no pool is being filled.
  [[nodiscard]] PoolId For(CUstream_st* stream) {
    return filling_count_.load(std::memory_order_acquire) == 0 ? kSharedPool : Ask(stream);
  }

 private:
  struct Pool {
    PoolId pool;
    uint64_t uses;
  };
  struct Filling {
    Id id;
    PoolId pool;
    Uses uses;
  };
  PoolId Ask(CUstream_st* stream);

  CachingAllocator& allocator_;
  std::atomic<size_t> filling_count_ = 0;
  Mutex mutex_;  // held while filters are asked: what they look at is gone after End
  std::map<Id, Pool> pools_ GPULEDGER_GUARDED_BY(mutex_);
  std::vector<Filling> filling_ GPULEDGER_GUARDED_BY(mutex_);
};

}  // namespace gpuledger::cuda
