#include "stack_table.h"

#include <fmt/format.h>

namespace gpuledger {
namespace {

std::string KeyOf(const std::vector<SiteFrame>& frames) {
  std::string key;
  for (const SiteFrame& f : frames) {
    if (f.python) {
      key += fmt::format("{}\n{}\n{}\n", f.function, f.file, f.line);
    } else {
      key += fmt::format("{}+{}\n", f.module, f.offset);
    }
  }
  return key;
}

}  // namespace

SiteId StackTable::Add(const RawStack& raw, uint64_t hash, std::vector<SiteFrame> frames) {
  auto stack = std::make_unique<Stack>(raw, hash);
  std::string key = KeyOf(frames);
  const std::lock_guard lock(adding_);
  if (const Stack* const other = Find(raw, hash)) return other->id;  // of a thread that was faster
  if (const auto alike = by_frames_.find(key); alike != by_frames_.end()) {
    stack->id = alike->second;
  } else {
    if (next_ == kLeaves * kLeaf) return kNoSite;
    std::atomic<Leaf*>& leaf = by_id_[next_ / kLeaf];
    if (leaf.load(std::memory_order_relaxed) == nullptr) leaf.store(new Leaf{}, std::memory_order_release);
    by_frames_.emplace(std::move(key), stack->id = SiteId(next_ | kStackBit));
    stack->frames = std::move(frames);
    (*leaf.load(std::memory_order_relaxed))[next_ % kLeaf].store(stack.get(), std::memory_order_release);
    ++next_;
  }
  std::atomic<Stack*>& bucket = BucketOf(hash);
  stack->next = bucket.load(std::memory_order_relaxed);
  const SiteId id = stack->id;
  bucket.store(stack.release(), std::memory_order_release);
  return id;
}

}  // namespace gpuledger
