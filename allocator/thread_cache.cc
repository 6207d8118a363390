#include "thread_cache.h"

namespace gpuledger {

Block* StreamCache::TakeAll() {
  Block* all = TakeReturned();
  for (size_t i = 0; i < kSizes && bytes > 0; ++i) {
    while (Block* block = lists[i]) {
      lists[i] = block->next;
      bytes -= block->size.count();
      block->next = all;
      all = block;
    }
    counts[i] = 0;
  }
  return all;
}

StreamCache* ThreadCaches::FindSlow(Stream stream, PoolId pool) const {
  for (const auto& cache : all_) {
    if (Serves(*cache, stream, pool)) return last_ = cache.get();
  }
  return nullptr;
}

StreamCache& ThreadCaches::Make(Ledger::Shard& shard, StreamPools& pools) {
  for (const auto& cache : all_) {  // one of a stream that is gone serves again: blocks that still call it home are of another pool
    if (!cache->retired.load(std::memory_order_relaxed) || cache->bytes > 0) continue;
    cache->pools = &pools;
    cache->retired.store(false, std::memory_order_relaxed);
    return *(last_ = cache.get());
  }
  return *(last_ = all_.emplace_back(std::make_unique<StreamCache>(shard, pools)).get());
}

const ThreadCaches::Freed* ThreadCaches::FindFreed(uint64_t address) const {
  for (size_t back = 1; back <= freed_.size(); ++back) {  // the latest first
    const Freed& freed = freed_[(next_freed_ - back) % freed_.size()];
    if (freed.address == address) return &freed;
  }
  return nullptr;
}

}  // namespace gpuledger
