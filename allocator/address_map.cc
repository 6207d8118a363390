#include "address_map.h"

#include <sys/mman.h>

#include <algorithm>

namespace gpuledger {
namespace {

constexpr size_t kLeavesAtOnce = 64;

}  // namespace

AddressMap::AddressMap() {
  MutexLock lock(mutex_);
  root_ = static_cast<Node*>(Zeroed(sizeof(Node)));
}

AddressMap::~AddressMap() {
  MutexLock lock(mutex_);
  for (const auto& [memory, bytes] : storage_) munmap(memory, bytes);
}

void* AddressMap::Zeroed(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) Die("the host has no memory for the map of block addresses");
  storage_.emplace_back(memory, bytes);
  return memory;
}

void AddressMap::Prepare(uint64_t begin, Bytes size) {
  constexpr uint64_t kLeafSpan = uint64_t{1} << (kUnitBits + kLeafBits);
  if (begin + size.count() > uint64_t{1} << 63) Die("the map of block addresses: an address over 2^63");
  MutexLock lock(mutex_);
  for (uint64_t at = begin / kLeafSpan * kLeafSpan; at < begin + size.count(); at += kLeafSpan) {
    Node* node = root_;
    for (int level = kLevels - 1; level > 0; --level) {
      std::atomic<void*>& child = node->children[ChildIndex(at, level)];
      if (child.load(std::memory_order_relaxed) == nullptr) child.store(Zeroed(sizeof(Node)), std::memory_order_release);
      node = static_cast<Node*>(child.load(std::memory_order_relaxed));
    }
    std::atomic<void*>& leaf = node->children[ChildIndex(at, 0)];
    if (leaf.load(std::memory_order_relaxed) != nullptr) continue;
    if (unused_bytes_ == 0) {
      unused_bytes_ = kLeavesAtOnce * sizeof(LeafNode);
      unused_ = static_cast<std::byte*>(Zeroed(unused_bytes_));
    }
    leaf.store(unused_, std::memory_order_release);
    unused_ += sizeof(LeafNode);
    unused_bytes_ -= sizeof(LeafNode);
  }
}

AddressMap::Entry AddressMap::FindAtOrBelow(uint64_t address, uint64_t lowest) const {
  constexpr uint64_t kUnit = uint64_t{1} << kUnitBits, kLeafSpan = uint64_t{1} << (kUnitBits + kLeafBits);
  for (uint64_t left = address / kUnit + 1; left > 0 && (left - 1) * kUnit >= lowest;) {
    const uint64_t at = (left - 1) * kUnit;
    const LeafNode* leaf = Leaf(at);
    if (leaf == nullptr) {
      left = at / kLeafSpan * (kLeafSpan / kUnit);  // on to the leaf below
      continue;
    }
    if (Block* block = leaf->entries[Index(at)].load(std::memory_order_acquire)) return {at, block};
    --left;
  }
  return {};
}

}  // namespace gpuledger
