#include "thread_cache.h"

#include <utility>

namespace gpuledger {
namespace {

void Prepend(Block*& list, Block* block) {
  block->front.next = list;
  list = block;
}

}  // namespace

Block* StreamCache::Collect() {
  Block* left_over = nullptr;
  for (Block* block = TakeReturned(); block != nullptr;) {
    Block* const next = block->front.next;
    if (!Push(block)) Prepend(left_over, block);
    block = next;
  }
  return left_over;
}

Block* StreamCache::TakeAll(Block* list) {
  for (Block* block = TakeReturned(); block != nullptr;) Prepend(list, std::exchange(block, block->front.next));
  for (size_t i = 0; i < kSizes && bytes > 0; ++i) {
    while (Block* block = lists[i]) {
      lists[i] = block->front.next;
      bytes -= block->size.count();
      Prepend(list, block);
    }
    counts[i] = 0;
  }
  return list;
}

StreamCache* ThreadCaches::FindSlow(Stream stream, PoolId pool) const {
  for (const auto& cache : all_) {
    if (Serves(*cache, stream, pool)) return last_ = cache.get();
  }
  return nullptr;
}

StreamCache& ThreadCaches::Make(Ledger::Shard& shard, StreamPools& pools) {
  for (const auto& cache : all_) {
    if (cache->pools != &pools) continue;  // it served the stream that had these pools before
    cache->key = pools.use.key;
    cache->id = pools.use.id;
    cache->retired.store(false, std::memory_order_release);
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
