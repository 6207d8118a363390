// tracing/replay/pattern.h - what is written into a block of host memory, and looked for when it is freed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gpuledger/types.h"

namespace gpuledger::replay {

// A word of the block `allocation` at `offset`: no two blocks, and no two places of one, have the same (but by chance).
class Pattern {
 public:
  static constexpr uint64_t kSize = 8;
  Pattern(uint32_t allocation, uint64_t offset) : offset_(offset) {
    uint64_t word = (uint64_t{allocation} + 1) * 0x9E3779B97F4A7C15 ^ (offset + 1) * 0xC2B2AE3D27D4EB4F;
    word = (word ^ (word >> 32)) * 0xD6E8FEB86659FD93;
    word_ = word ^ (word >> 32);
  }
  [[nodiscard]] const void* bytes() const { return &word_; }
  // Less than a word at the end of a block.
  [[nodiscard]] uint64_t size(Bytes block) const { return std::min(kSize, block.count() - offset_); }

 private:
  uint64_t offset_;
  uint64_t word_;
};

// The first and the last word, and a word at each sixteenth of a block of over 64 KiB. No two of them overlap.
inline std::vector<uint64_t> SampledOffsets(Bytes block) {
  const uint64_t size = block.count(), last = (size - 1) / Pattern::kSize * Pattern::kSize;
  std::vector<uint64_t> offsets = {0};
  if (last > 0) offsets.push_back(last);
  if (size > 64 << 10) {
    for (uint64_t i = 1; i < 16; ++i) offsets.push_back(size / 16 * i / Pattern::kSize * Pattern::kSize);
  }
  return offsets;
}

}  // namespace gpuledger::replay
