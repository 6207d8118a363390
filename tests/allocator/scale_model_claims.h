// Which granules of 512 B belong to a block, in the plainest form that many threads can keep: a bit each, set by whoever
// is handed a block and cleared before it is freed. A bit that is set twice is two blocks that overlap.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "gpuledger/types.h"

namespace gpuledger::scale {

inline constexpr uint64_t kUnit = uint64_t{2} << 20;  // one leaf; the granularity of all upstreams here
inline constexpr uint64_t kGranule = 512;

// What is known of 2 MiB of addresses. `stream` and `last` say whose work touched it last: see Timeline.
struct Leaf {
  std::atomic<uint64_t> bits[kUnit / kGranule / 64] = {};
  std::atomic<uint32_t> stream = 0;
  std::atomic<uint64_t> last = 0;
  std::atomic<uint64_t> pool = 0;  // 1 + the id of the pool that handed blocks out here; 0: none did
};

class Claims {
 public:
  // `alone`: one thread at a time calls.
  explicit Claims(bool alone) : alone_(alone), table_(std::make_unique<Place[]>(kPlaces)) {}
  ~Claims() {
    for (size_t i = 0; i < kPlaces; ++i) delete table_[i].leaf.load(std::memory_order_relaxed);
  }

  // False, and nothing changed, if a granule of it is claimed.
  bool Claim(uint64_t begin, uint64_t size) { return Walk<true>(begin, size) == begin + size; }
  void Unclaim(uint64_t begin, uint64_t size) { Walk<false>(begin, size); }

  bool AnyClaimed(uint64_t begin, uint64_t size) {
    for (uint64_t at = begin; at < begin + size; at += kUnit) {
      const Leaf* leaf = Find(at);
      if (leaf == nullptr) continue;
      for (const auto& bits : leaf->bits) {
        if (bits.load(std::memory_order_relaxed) != 0) return true;
      }
    }
    return false;
  }

  Leaf& At(uint64_t address) {
    Place& place = *PlaceOf(address / kUnit, true);
    Leaf* leaf = place.leaf.load(std::memory_order_acquire);
    if (leaf != nullptr) return *leaf;
    Leaf* const mine = new Leaf;
    if (place.leaf.compare_exchange_strong(leaf, mine, std::memory_order_acq_rel)) return *mine;
    delete mine;
    return *leaf;
  }
  Leaf* Find(uint64_t address) {
    const Place* const place = PlaceOf(address / kUnit, false);
    return place == nullptr ? nullptr : place->leaf.load(std::memory_order_acquire);
  }

 private:
  static constexpr size_t kPlaces = size_t{1} << 17;
  struct Place {
    std::atomic<uint64_t> key = 0;
    std::atomic<Leaf*> leaf = nullptr;
  };

  Place* PlaceOf(uint64_t key, bool make) {
    for (size_t i = (key * 0x9e3779b97f4a7c15u) >> 47, tried = 0; tried < kPlaces; i = (i + 1) % kPlaces, ++tried) {
      uint64_t found = table_[i].key.load(std::memory_order_acquire);
      if (found == key) return &table_[i];
      if (found != 0) continue;
      if (!make) return nullptr;
      if (table_[i].key.compare_exchange_strong(found, key, std::memory_order_acq_rel) || found == key) return &table_[i];
    }
    Die("scale model: an episode used more addresses than its table holds: make episodes shorter");
  }

  // How far it came: to the end, or to the word in which a granule was claimed already.
  template <bool kSet>
  uint64_t Walk(uint64_t begin, uint64_t size) {
    constexpr uint64_t kWord = kGranule * 64;
    const uint64_t end = begin + size;
    Leaf* leaf = nullptr;
    for (uint64_t at = begin; at < end;) {
      if (leaf == nullptr || at % kUnit == 0) leaf = &At(at);
      const uint64_t next = std::min(end, at / kWord * kWord + kWord);
      const uint64_t count = (next - at) / kGranule;
      const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << (at / kGranule % 64);
      std::atomic<uint64_t>& word = leaf->bits[at % kUnit / kWord];
      if (kSet) {
        const uint64_t old = Change(word, mask, true);
        if ((old & mask) != 0) {
          Change(word, mask & ~old, false);
          if (at != begin) Walk<false>(begin, at - begin);
          return at;
        }
      } else {
        Change(word, mask, false);
      }
      at = next;
    }
    return end;
  }
  uint64_t Change(std::atomic<uint64_t>& word, uint64_t mask, bool set) const {
    if (!alone_) return set ? word.fetch_or(mask, std::memory_order_acq_rel) : word.fetch_and(~mask, std::memory_order_acq_rel);
    const uint64_t old = word.load(std::memory_order_relaxed);
    word.store(set ? old | mask : old & ~mask, std::memory_order_relaxed);
    return old;
  }

  const bool alone_;
  const std::unique_ptr<Place[]> table_;
};

}  // namespace gpuledger::scale
