// allocator/address_map.h - from the address of a block to the block, without a lock.
//
// A radix tree over addresses: three levels of pointers, then a leaf of one entry for each 512 B of 2 MiB. Leaves are made
// when memory is mapped there (Prepare) and never go away, so Set and Find touch no lock and allocate nothing. An entry is
// written when a pool hands the block out and is not cleared when it comes back: whoever looks up an address compares it
// with the block's own. Host memory: 8 bytes for each 512 B of device memory, of which the kernel backs only what blocks touch.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpuledger/types.h"
#include "sync.h"

namespace gpuledger {

struct Block;

class AddressMap {
 public:
  AddressMap();
  ~AddressMap();
  AddressMap(const AddressMap&) = delete;
  AddressMap& operator=(const AddressMap&) = delete;

  // Makes room for blocks that start in [begin, begin + size). Thread-safe; allocates host memory.
  void Prepare(uint64_t begin, Bytes size);
  // Requires: the address was prepared. Thread-safe.
  void Set(uint64_t address, Block* block) { Leaf(address)->entries[Index(address)].store(block, std::memory_order_release); }
  // The block last set there; null for an address that never was one. Thread-safe; any address may be asked for.
  [[nodiscard]] Block* Find(uint64_t address) const {
    const LeafNode* leaf = Leaf(address);
    return leaf == nullptr ? nullptr : leaf->entries[Index(address)].load(std::memory_order_acquire);
  }
  // The largest address in [lowest, address] that was ever set, with the block last set there; null if there is none.
  struct Entry {
    uint64_t address = 0;
    Block* block = nullptr;
  };
  [[nodiscard]] Entry FindAtOrBelow(uint64_t address, uint64_t lowest) const;

 private:
  static constexpr int kUnitBits = 9;   // SizeClass::kGranule
  static constexpr int kLeafBits = 12;  // entries of a leaf
  static constexpr int kNodeBits = 14;  // pointers of a node
  static constexpr int kLevels = 3;
  static_assert(uint64_t{1} << kUnitBits == SizeClass::kGranule.count());
  static_assert(kUnitBits + kLeafBits + kLevels * kNodeBits == 63);

  struct LeafNode {
    std::array<std::atomic<Block*>, size_t{1} << kLeafBits> entries;
  };
  struct Node {
    std::array<std::atomic<void*>, size_t{1} << kNodeBits> children;
  };

  static size_t Index(uint64_t address) { return (address >> kUnitBits) & ((size_t{1} << kLeafBits) - 1); }
  static size_t ChildIndex(uint64_t address, int level) {
    return (address >> (kUnitBits + kLeafBits + level * kNodeBits)) & ((size_t{1} << kNodeBits) - 1);
  }
  [[nodiscard]] LeafNode* Leaf(uint64_t address) const {
    if (address >> 63 != 0 || address % SizeClass::kGranule.count() != 0) return nullptr;
    const Node* node = root_;
    for (int level = kLevels - 1; level > 0; --level) {
      node = static_cast<const Node*>(node->children[ChildIndex(address, level)].load(std::memory_order_acquire));
      if (node == nullptr) return nullptr;
    }
    return static_cast<LeafNode*>(node->children[ChildIndex(address, 0)].load(std::memory_order_acquire));
  }
  // Zeroed memory of the kernel's, given back at the end of this map.
  void* Zeroed(size_t bytes) GPULEDGER_REQUIRES(mutex_);

  Mutex mutex_;
  std::vector<std::pair<void*, size_t>> storage_ GPULEDGER_GUARDED_BY(mutex_);
  std::byte* unused_ GPULEDGER_GUARDED_BY(mutex_) = nullptr;  // leaves are cut from pieces of many
  size_t unused_bytes_ GPULEDGER_GUARDED_BY(mutex_) = 0;
  Node* root_;
};

}  // namespace gpuledger
