// allocator/torch/cuda/private_pools.h - which pool an allocation comes from: graphs', MemPools', or everybody's.
//
// PyTorch names a pool by two numbers and counts its users. While a capture or a `use_mem_pool` is under way its filter
// says which streams (or threads) allocate in the pool. A pool that was made with an allocator has a CachingAllocator of
// its own over that; every other one is a private pool of the device's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include <c10/cuda/CUDACachingAllocator.h>

#include "gpuledger/allocator.h"
#include "plugged_upstream.h"

namespace gpuledger::pytorch {

using c10::MempoolId_t;
class Device;

// Where records of plugged memory go: to the device, which is told that this memory comes in whole segments.
class PluggedSink final : public RecordSink {
 public:
  explicit PluggedSink(Device& device) : device_(&device) {}
  void Write(const Record& record) noexcept override;
  void WriteFree(const Record& requested, const Record& completed) noexcept override;

 private:
  Device* device_;
};

// Thread-safe. Its lock is held while filters run, and while no allocator is called.
class PrivatePools {
 public:
  // All outlive it. `limit`: what plugged memory may grow to now, in bytes.
  // `plugged_sink` gets the records of plugged memory.
  PrivatePools(CachingAllocator& device, PluggedSink plugged_sink, std::function<Bytes()> limit)
      : device_(device), sink_(plugged_sink), budget_(std::move(limit)) {}

  struct Choice {
    CachingAllocator* allocator;
    PoolId pool;
    MempoolId_t id;
    bool whole = false;                 // blocks are whole multiples of 2 MiB (no_split)
    std::shared_ptr<void> keeps = {};  // the allocator, if it is a plugged pool's, which may be released meanwhile
  };
  // Where an allocation of this thread on this stream comes from.
  [[nodiscard]] Choice Choose(cudaStream_t stream) {
    if (directing_.load(std::memory_order_relaxed) == 0) [[likely]] return {&device_, kSharedPool, {0, 0}};
    return ChooseAmong(stream);
  }
  // What to ask for so that `room` bytes split no segment of a plugged pool with no_split: all of the smallest free one that has so much.
  [[nodiscard]] Bytes Unsplit(const Choice& pool, Stream stream, Bytes room) const {
    return pool.whole && pool.allocator != &device_ ? SmallestFreeSegment(*pool.allocator, stream, room) : room;
  }
  // The pools that may be used when there is no memory left otherwise (use_on_oom).
  [[nodiscard]] std::vector<Choice> Reserves() const;

  // One user more; made if there is none yet, over `plugged` if that is given.
  void CreateOrIncrement(MempoolId_t id, std::shared_ptr<CUDAAllocator> plugged);
  // As many users more as there are directions: whoever ends one releases the pool too.
  void Begin(MempoolId_t id, std::function<bool(cudaStream_t)> filter);
  void End(MempoolId_t id);      // throws if none of that pool is under way
  void Release(MempoolId_t id);  // one user less; throws if there is no such pool
  [[nodiscard]] int UseCount(MempoolId_t id) const;
  void set_use_on_oom(MempoolId_t id, bool use);
  void set_no_split(MempoolId_t id);

  // The pool, or nothing: also one that was released and whose blocks live on.
  [[nodiscard]] std::optional<Choice> Find(MempoolId_t id) const;
  // Whose private pool that is; {0, 0} for everybody's and for those that were released.
  [[nodiscard]] MempoolId_t IdOf(const CachingAllocator& allocator, PoolId pool) const;
  // Every allocator of the device: its own, and those of pools over plugged ones, which live for as long as they are held.
  [[nodiscard]] std::vector<std::shared_ptr<CachingAllocator>> Allocators() const;
  // The one of them that has a block in use there; null if there is none.
  [[nodiscard]] std::shared_ptr<CachingAllocator> OwnerOf(DevicePtr block) const;
  // Frees the block if it is in use in one of them.
  bool TryFree(DevicePtr block) {
    return device_.TryFree(block) || (plugged_.load(std::memory_order_relaxed) > 0 && TryFreePlugged(block));
  }
  // What plugged allocators have given, cached or in use.
  [[nodiscard]] Bytes plugged_memory() const { return budget_.taken(); }
  // Gives back what released pools over plugged allocators have cached; of one pool, or {0, 0}: of all.
  void GiveBack(MempoolId_t id);

 private:
  // Its blocks are a private pool's, as graphs need it: what is cached stays until the pool is released.
  struct Plugged {
    Plugged(CachingAllocator& device, std::shared_ptr<CUDAAllocator> allocator, PluggedSink sink_of_device, PluggedBudget& budget)
        : upstream(device.upstream(), std::move(allocator), budget), sink(sink_of_device), core(upstream, AllocatorOptions{}, &sink), pool(core.CreatePool()) {
      // Both want the same device's memory: what the device has cached goes before a plugged allocator runs out.
      core.OnOutOfMemory([&device](Bytes) { return !device.ReleaseCached().is_zero(); });
    }
    PluggedUpstream upstream;
    PluggedSink sink;
    CachingAllocator core;
    const PoolId pool;
  };
  [[nodiscard]] std::shared_ptr<CachingAllocator> ItsOwn() const { return {std::shared_ptr<void>(), &device_}; }  // counts nothing
  struct Pool {
    MempoolId_t id;
    PoolId pool{0};
    std::shared_ptr<Plugged> plugged;  // null: a private pool of the device's allocator
    int users = 0;
    bool use_on_oom = false, no_split = false;
    [[nodiscard]] bool released() const { return users == 0; }
  };
  struct Direction {
    MempoolId_t id;
    std::function<bool(cudaStream_t)> filter;
  };
  [[nodiscard]] Choice ChooseAmong(cudaStream_t stream);
  [[nodiscard]] static Bytes SmallestFreeSegment(const CachingAllocator& plugged, Stream stream, Bytes room);
  bool TryFreePlugged(DevicePtr block);
  [[nodiscard]] Choice ChoiceOf(const Pool& pool) const;
  // Requires the lock. Null, or an error that names it.
  [[nodiscard]] Pool* PoolOf(MempoolId_t id);
  [[nodiscard]] const Pool* PoolOf(MempoolId_t id) const { return const_cast<PrivatePools*>(this)->PoolOf(id); }
  Pool& Known(MempoolId_t id, const char* call);

  CachingAllocator& device_;
  const PluggedSink sink_;
  PluggedBudget budget_;
  mutable std::mutex mutex_;
  std::vector<Pool> pools_;
  std::vector<Direction> directions_;
  std::atomic<size_t> directing_ = 0;  // how many directions there are
  std::atomic<size_t> plugged_ = 0;    // how many pools over plugged allocators there are
};

}  // namespace gpuledger::pytorch
