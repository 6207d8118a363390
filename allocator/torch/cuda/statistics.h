// allocator/torch/cuda/statistics.h - PyTorch's figures of one device (torch.cuda.memory_stats), out of the ledger's records.
//
// Current values, peaks and totals of all figures are exact in the order of the records. As PyTorch has it, requests up to
// 1 MiB count as of the small pool, whatever pool serves them; `reserved` and `segment` count by the pool that has the memory.
// Nothing is ever split off for good here (free handles move), so `inactive_split` is 0, as under expandable segments.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <c10/core/CachingDeviceAllocator.h>

#include "gpuledger/allocator.h"
#include "gpuledger/record.h"

namespace gpuledger::pytorch {

// Guarded by whoever has it (Device).
class Statistics {
 public:
  void Note(const Record& record);
  void NoteFree(const Record& requested);  // and completed
  // A range that memory was mapped into is not known yet: its pool is learned from the allocator's segments.
  [[nodiscard]] bool lacks_ranges() const { return !unplaced_.empty(); }
  [[nodiscard]] size_t unplaced() const { return unplaced_.size(); }
  // `segments` were listed when the first `known` pieces had come; the rest wait.
  void Learn(const std::vector<SegmentInfo>& segments, size_t known);

  [[nodiscard]] c10::CachingDeviceAllocator::DeviceStats figures() const;
  [[nodiscard]] int64_t allocated() const { return blocks_[kAll].current[kAllocatedBytes]; }
  [[nodiscard]] int64_t active() const { return blocks_[kAll].current[kActiveBytes]; }
  [[nodiscard]] int64_t reserved() const { return figures_.reserved_bytes[0].current; }
  void ResetAccumulated();
  void ResetPeak();
  void CountRetry() { figures_.num_alloc_retries += 1; }
  void CountOutOfMemory() { figures_.num_ooms += 1; }
  void CountSynchronisations(int64_t count) { figures_.num_sync_all_streams += count; }
  void set_max_split_size(int64_t size) { figures_.max_split_size = size; }

 private:
  static constexpr size_t kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  static constexpr size_t kPools = static_cast<size_t>(c10::CachingAllocator::StatType::NUM_TYPES);
  // What every block changes, kept side by side: the same step for each figure. PyTorch's form is made when it is asked for.
  enum Figure : size_t { kAllocations, kAllocatedBytes, kRequestedBytes, kActive, kActiveBytes, kFigures };
  using Amounts = std::array<int64_t, kFigures>;
  struct alignas(64) BlockFigures {
    Amounts current{}, peak{}, up{}, down{};
    void Increase(const Amounts& by) {
      for (size_t i = 0; i < kFigures; ++i) {
        current[i] += by[i];
        up[i] += by[i];
        peak[i] = std::max(peak[i], current[i]);
      }
    }
    void Decrease(const Amounts& by) {
      for (size_t i = 0; i < kFigures; ++i) {
        current[i] -= by[i];
        down[i] += by[i];
      }
    }
  };
  void Decrease(const Amounts& by, size_t pool) {
    blocks_[kAll].Decrease(by);
    blocks_[pool].Decrease(by);
  }

  // Memory that came or went at an address.
  struct Piece {
    uint64_t address;
    uint64_t size;
    bool mapped;
  };
  // A range that holds memory.
  struct MappedRange {
    uint64_t begin, end;
    bool small;
    uint64_t mapped;
  };
  void Place(MappedRange& range, const Piece& piece);
  MappedRange* RangeOf(uint64_t address);

  std::array<BlockFigures, kPools> blocks_;
  c10::CachingDeviceAllocator::DeviceStats figures_;  // all but those
  std::vector<MappedRange> ranges_;
  std::vector<Piece> unplaced_;
};

}  // namespace gpuledger::pytorch
