// tracing/stack_table.h - stacks by their words and by their ids, looked up without a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/sites.h"
#include "stack_python.h"

namespace gpuledger {

// What a stack is, as it was found: return addresses, then code objects with where in them.
struct RawStack {
  static constexpr size_t kMostNative = 64, kMostPython = 64;
  std::array<uintptr_t, kMostNative> native;
  std::array<python::Frame, kMostPython> python;
  size_t natives = 0, pythons = 0;

  static uint64_t WordOf(const python::Frame& frame) { return uint64_t{frame.names} << 32 | static_cast<uint32_t>(frame.at); }
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
      a = mix(a, reinterpret_cast<uintptr_t>(python[p].code)), b = mix(b, WordOf(python[p]));
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
      key[natives + 2 * i + 1] = RawStack::WordOf(raw.python[i]);
    }
  }
  [[nodiscard]] bool Is(const RawStack& raw, uint64_t its_hash) const {
    if (hash != its_hash || natives != raw.natives || words != raw.words()) return false;
    if (std::memcmp(key.get(), raw.native.data(), natives * sizeof(uint64_t)) != 0) return false;
    for (size_t i = 0; i < raw.pythons; ++i) {
      if (key[natives + 2 * i] != reinterpret_cast<uintptr_t>(raw.python[i].code)) return false;
      if (key[natives + 2 * i + 1] != RawStack::WordOf(raw.python[i])) return false;
    }
    return true;
  }

  uint64_t hash;
  size_t natives, words;
  std::unique_ptr<uint64_t[]> key;
  Stack* next = nullptr;  // in its bucket
  SiteId id{0};
  std::vector<SiteFrame> frames;  // of the first stack with this id
};

// Many raw stacks may be one to a reader: an interpreter that has warmed up calls through other frames of its own. They have one id.
class StackTable {
 public:
  [[nodiscard]] const Stack* Find(const RawStack& raw, uint64_t hash) const {
    for (const Stack* s = BucketOf(hash).load(std::memory_order_acquire); s != nullptr; s = s->next) {
      if (s->Is(raw, hash)) return s;
    }
    return nullptr;
  }
  // The id of `raw`, with `frames` if it is new. kNoSite after 2^26 stacks.
  SiteId Add(const RawStack& raw, uint64_t hash, std::vector<SiteFrame> frames);
  [[nodiscard]] const Stack* ById(SiteId site) const {
    const uint32_t number = site.value() & ~kStackBit;
    if ((site.value() & kStackBit) == 0 || number >= kLeaves * kLeaf) return nullptr;
    const Leaf* const leaf = by_id_[number / kLeaf].load(std::memory_order_acquire);
    return leaf == nullptr ? nullptr : (*leaf)[number % kLeaf].load(std::memory_order_acquire);
  }

  void LockForFork() { adding_.lock(); }
  void UnlockAfterFork() { adding_.unlock(); }

 private:
  static constexpr uint32_t kStackBit = 1u << 31;
  static constexpr size_t kBuckets = 1 << 16, kLeaves = 1 << 14, kLeaf = 1 << 12;
  using Leaf = std::array<std::atomic<const Stack*>, kLeaf>;

  std::atomic<Stack*>& BucketOf(uint64_t hash) { return buckets_[hash % kBuckets]; }
  [[nodiscard]] const std::atomic<Stack*>& BucketOf(uint64_t hash) const { return buckets_[hash % kBuckets]; }

  std::array<std::atomic<Stack*>, kBuckets> buckets_{};
  std::array<std::atomic<Leaf*>, kLeaves> by_id_{};
  std::mutex adding_;
  absl::flat_hash_map<std::string, SiteId> by_frames_;  // under adding_
  uint32_t next_ = 1;                                   // under adding_
};

}  // namespace gpuledger
