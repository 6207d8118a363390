// allocator/thread_cache.h - small blocks that a thread keeps for itself, one cache for each stream it allocates on.
//
//   hit   = pop of the list of this very size                       (the thread's own lock, nothing shared)
//   free  = push, by the thread that allocated                       (the same)
//         = one compare-and-swap on `returned`, by any other thread
//
// Cached blocks are exact multiples of 512 B up to 64 KiB: no rounding is added. A size keeps at most 64 KiB, a cache at most
// 1 MiB; what is more goes back to the pool, and everything does before an upstream is asked for memory (ladder.cc).
// To its pool a cached block is taken, so it does not merge with its neighbours: that is why caches are small.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "block.h"
#include "gpuledger/allocator.h"
#include "ledger_impl.h"
#include "stream_pools.h"

namespace gpuledger {

// Guarded by the lock of the thread's ledger shard, but for `returned`. Never destroyed before its allocator: blocks point to it.
struct StreamCache {
  static constexpr Bytes kLargest = Bytes(64u << 10);
  static constexpr Bytes kOfOneSize = Bytes(64u << 10);
  static constexpr Bytes kInAll = Bytes(1u << 20);
  static constexpr size_t kSizes = kLargest / SizeClass::kGranule;

  StreamCache(Ledger::Shard& its_shard, StreamPools& its_pools)
      : shard(its_shard), pools(&its_pools), key(its_pools.use.key), id(its_pools.use.id) {}
  StreamCache(const StreamCache&) = delete;
  StreamCache& operator=(const StreamCache&) = delete;

  static size_t Index(Bytes charged) { return charged / SizeClass::kGranule - 1; }

  // Null on a miss.
  Block* Pop(Bytes charged) {
    const size_t i = Index(charged);
    Block* block = lists[i];
    if (block == nullptr) return nullptr;
    lists[i] = block->front.next;
    counts[i] -= 1;
    bytes -= charged.count();
    used = true;
    return block;
  }
  // False if the block must go to its pool instead: this size, or the cache, is full, or the stream is gone.
  bool Push(Block* block) {
    const Bytes charged = block->size;
    const size_t i = Index(charged);
    if ((counts[i] + 1u) * charged.count() > kOfOneSize.count() || bytes + charged.count() > kInAll.count()) return false;
    if (retired.load(std::memory_order_relaxed)) return false;
    block->front.next = lists[i];
    lists[i] = block;
    counts[i] += 1;
    bytes += charged.count();
    return true;
  }
  // Any thread, without a lock. True if so much lies here by now that the caller takes it to the pools (TakeReturned).
  bool Return(Block* block) {
    const auto size = static_cast<uint32_t>(block->size.count());
    Block* first = returned.load(std::memory_order_relaxed);
    uint32_t bytes_here = size;
    do {
      bytes_here = size + (first == nullptr ? 0 : first->front.list_bytes.load(std::memory_order_relaxed));
      block->front.next = first;
      block->front.list_bytes.store(bytes_here, std::memory_order_relaxed);
    } while (!returned.compare_exchange_weak(first, block, std::memory_order_acq_rel, std::memory_order_relaxed));
    return bytes_here > kInAll.count() || retired.load(std::memory_order_relaxed);
  }
  // What other threads have returned, as a list. Any thread.
  Block* TakeReturned() {
    return returned.load(std::memory_order_relaxed) == nullptr ? nullptr : returned.exchange(nullptr, std::memory_order_acquire);
  }
  // Takes in what other threads have returned; what does not fit, as a list.
  Block* Collect();
  // Everything it keeps, returned blocks too, in front of `list`.
  Block* TakeAll(Block* list);

  Ledger::Shard& shard;
  StreamPools* const pools;
  // Whom it serves. Written and read by its thread alone: what the pools say of it others change.
  StreamKey key;
  PoolId id;
  std::array<Block*, kSizes> lists{};
  std::array<uint8_t, kSizes> counts{};
  uint64_t bytes = 0;
  bool used = false;  // since a ladder looked last
  std::atomic<bool> retired = false;  // its stream is gone, or this is a forked child: nothing comes out any more
  alignas(64) std::atomic<Block*> returned = nullptr;
  static_assert(kOfOneSize / SizeClass::kGranule < 256);
};

// All caches of one thread; what the allocator keeps in a ledger shard.
class ThreadCaches final : public ShardExtension {
 public:
  // The cache for this stream and pool; null if there is none (yet). The thread itself only: no lock.
  [[nodiscard]] StreamCache* Find(Stream stream, PoolId pool) const {
    if (last_ != nullptr && Serves(*last_, stream, pool)) return last_;
    return FindSlow(stream, pool);
  }
  // Requires: the shard's lock and growth; the thread itself only.
  StreamCache& Make(Ledger::Shard& shard, StreamPools& pools);
  [[nodiscard]] const std::vector<std::unique_ptr<StreamCache>>& all() const { return all_; }

  // Blocks freed lately, for whoever frees one again. Guarded by the shard's lock.
  struct Freed {
    uint64_t address = 0;
    Payer payer;
    SiteId site = kNoSite;
  };
  void NoteFreed(const Freed& freed) { freed_[next_freed_++ % freed_.size()] = freed; }
  [[nodiscard]] const Freed* FindFreed(uint64_t address) const;

 private:
  static bool Serves(const StreamCache& cache, Stream stream, PoolId pool) {
    if (cache.retired.load(std::memory_order_acquire)) return false;
    return cache.key.stream.raw() == stream.raw() && cache.id == pool && (!stream.per_thread() || cache.key.reachable());
  }
  [[nodiscard]] StreamCache* FindSlow(Stream stream, PoolId pool) const;

  mutable StreamCache* last_ = nullptr;
  std::vector<std::unique_ptr<StreamCache>> all_;
  std::array<Freed, 64> freed_{};
  size_t next_freed_ = 0;
};

}  // namespace gpuledger
