// tracing/id_set.h - which ids have been seen: one bit each, added and removed without a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace gpuledger::trace {

class IdSet {
 public:
  IdSet() = default;
  ~IdSet() {
    for (auto& leaf : leaves_) delete leaf.load();
  }
  IdSet(const IdSet&) = delete;
  IdSet& operator=(const IdSet&) = delete;

  [[nodiscard]] bool Contains(uint32_t id) const {
    const Leaf* leaf = leaves_[id >> kLeafBits].load(std::memory_order_acquire);
    return leaf != nullptr && ((*leaf)[(id & kLeafMask) / 64].load(std::memory_order_acquire) >> id % 64 & 1) != 0;
  }
  // False if it was there.
  bool Add(uint32_t id) {
    auto& place = leaves_[id >> kLeafBits];
    Leaf* leaf = place.load(std::memory_order_acquire);
    if (leaf == nullptr) {
      auto* const fresh = new Leaf{};
      if (place.compare_exchange_strong(leaf, fresh)) leaf = fresh; else delete fresh;
    }
    const uint64_t bit = uint64_t{1} << id % 64;
    return ((*leaf)[(id & kLeafMask) / 64].fetch_or(bit, std::memory_order_acq_rel) & bit) == 0;
  }
  void Remove(uint32_t id) {
    Leaf* const leaf = leaves_[id >> kLeafBits].load(std::memory_order_acquire);
    if (leaf != nullptr) (*leaf)[(id & kLeafMask) / 64].fetch_and(~(uint64_t{1} << id % 64), std::memory_order_acq_rel);
  }
  template <class Visit>
  void ForEach(Visit visit) const {
    for (uint32_t high = 0; high < kLeaves; ++high) {
      const Leaf* leaf = leaves_[high].load(std::memory_order_acquire);
      if (leaf == nullptr) continue;
      for (uint32_t low = 0; low <= kLeafMask; ++low) {
        if (((*leaf)[low / 64].load(std::memory_order_acquire) >> low % 64 & 1) != 0) visit(high << kLeafBits | low);
      }
    }
  }

 private:
  static constexpr uint32_t kLeafBits = 18, kLeafMask = (1u << kLeafBits) - 1, kLeaves = 1u << (32 - kLeafBits);
  using Leaf = std::array<std::atomic<uint64_t>, (kLeafMask + 1) / 64>;
  std::array<std::atomic<Leaf*>, kLeaves> leaves_{};
};

}  // namespace gpuledger::trace
