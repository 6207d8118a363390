// tracing/stack_table.h - stacks by their words and by their ids; nobody waits.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gpuledger/sites.h"
#include "stack_python.h"

namespace gpuledger {

// What a stack is, as it was found: return addresses, then code objects with where in them.
struct RawStack {
  static constexpr size_t kMostNative = 64, kMostPython = 64;
  std::array<uintptr_t, kMostNative> native;
  std::array<python::Frame, kMostPython> python;
  size_t natives = 0, pythons = 0;

  [[nodiscard]] size_t words() const { return natives + 2 * pythons; }
  [[nodiscard]] uint64_t Hash() const {
    // Two independent chains: a multiplication takes longer than what else is done for a word.
    uint64_t a = natives * 128 + pythons + 1, b = 0x2545f4914f6cdd1d;
    const auto mix = [](uint64_t hash, uint64_t word) {
      hash = (hash ^ word) * 0x9e3779b97f4a7c15;
      return hash ^ hash >> 29;
    };
    size_t i = 0;
    for (; i + 1 < natives; i += 2) a = mix(a, native[i]), b = mix(b, native[i + 1]);
    if (i < natives) a = mix(a, native[i]);
    for (size_t p = 0; p < pythons; ++p) {
      a = mix(a, reinterpret_cast<uintptr_t>(python[p].code)), b = mix(b, static_cast<uint32_t>(python[p].at));
    }
    return mix(a, b);
  }
};

// Immutable once it can be found.
struct Stack {
  Stack(const RawStack& raw, uint64_t its_hash) : hash(its_hash), natives(raw.natives), words(raw.words()) {
    key = std::make_unique_for_overwrite<uint64_t[]>(words);
    std::memcpy(key.get(), raw.native.data(), natives * sizeof(uint64_t));
    for (size_t i = 0; i < raw.pythons; ++i) {
      key[natives + 2 * i] = reinterpret_cast<uintptr_t>(raw.python[i].code);
      key[natives + 2 * i + 1] = static_cast<uint32_t>(raw.python[i].at);
    }
  }
  [[nodiscard]] bool Is(const RawStack& raw, uint64_t its_hash) const {
    if (hash != its_hash || natives != raw.natives || words != raw.words()) return false;
    if (std::memcmp(key.get(), raw.native.data(), natives * sizeof(uint64_t)) != 0) return false;
    for (size_t i = 0; i < raw.pythons; ++i) {
      if (key[natives + 2 * i] != reinterpret_cast<uintptr_t>(raw.python[i].code)) return false;
      if (key[natives + 2 * i + 1] != static_cast<uint32_t>(raw.python[i].at)) return false;
    }
    return true;
  }

  uint64_t hash;
  size_t natives, words;
  std::unique_ptr<uint64_t[]> key;
  Stack* next = nullptr;  // in its bucket
  SiteId id{0};
  std::vector<SiteFrame> frames;
};

class StackTable {
 public:
  [[nodiscard]] const Stack* Find(const RawStack& raw, uint64_t hash) const {
    return Search(BucketOf(hash).load(std::memory_order_acquire), nullptr, raw, hash);
  }
  // The id of `raw`, whose stack is `stack` unless another thread added it in the meantime. kNoSite after 2^26 stacks.
  SiteId Add(std::unique_ptr<Stack> stack, const RawStack& raw) {
    const uint32_t number = next_.fetch_add(1, std::memory_order_relaxed);
    if (number >= kLeaves * kLeaf) {
      next_.store(kLeaves * kLeaf, std::memory_order_relaxed);
      return kNoSite;
    }
    std::atomic<const Stack*>& by_id = PlaceOfNumber(number);
    stack->id = SiteId(number | kStackBit);
    by_id.store(stack.get(), std::memory_order_release);  // before anybody can learn the id
    std::atomic<Stack*>& bucket = BucketOf(stack->hash);
    for (Stack *head = bucket.load(std::memory_order_acquire), *searched = nullptr;; searched = stack->next) {
      if (const Stack* const other = Search(head, searched, raw, stack->hash)) {
        by_id.store(nullptr, std::memory_order_release);
        return other->id;
      }
      stack->next = head;
      if (bucket.compare_exchange_strong(head, stack.get(), std::memory_order_acq_rel)) return stack.release()->id;
    }
  }
  [[nodiscard]] const Stack* ById(SiteId site) const {
    const uint32_t number = site.value() & ~kStackBit;
    if ((site.value() & kStackBit) == 0 || number >= kLeaves * kLeaf) return nullptr;
    const Leaf* const leaf = by_id_[number / kLeaf].load(std::memory_order_acquire);
    return leaf == nullptr ? nullptr : (*leaf)[number % kLeaf].load(std::memory_order_acquire);
  }

 private:
  static constexpr uint32_t kStackBit = 1u << 31;
  static constexpr size_t kBuckets = 1 << 16, kLeaves = 1 << 14, kLeaf = 1 << 12;
  using Leaf = std::array<std::atomic<const Stack*>, kLeaf>;

  std::atomic<Stack*>& BucketOf(uint64_t hash) { return buckets_[hash % kBuckets]; }
  [[nodiscard]] const std::atomic<Stack*>& BucketOf(uint64_t hash) const { return buckets_[hash % kBuckets]; }
  static const Stack* Search(const Stack* from, const Stack* until, const RawStack& raw, uint64_t hash) {
    for (; from != until; from = from->next) {
      if (from->Is(raw, hash)) return from;
    }
    return nullptr;
  }
  std::atomic<const Stack*>& PlaceOfNumber(uint32_t number) {
    std::atomic<Leaf*>& slot = by_id_[number / kLeaf];
    Leaf* leaf = slot.load(std::memory_order_acquire);
    if (leaf == nullptr) {
      auto fresh = std::make_unique<Leaf>();
      if (slot.compare_exchange_strong(leaf, fresh.get(), std::memory_order_acq_rel)) leaf = fresh.release();
    }
    return (*leaf)[number % kLeaf];
  }

  std::array<std::atomic<Stack*>, kBuckets> buckets_{};
  std::array<std::atomic<Leaf*>, kLeaves> by_id_{};
  std::atomic<uint32_t> next_{1};
};

}  // namespace gpuledger
