#include "statistics.h"

#include <algorithm>
#include <span>

#include <c10/core/AllocatorConfig.h>

namespace gpuledger::pytorch {
namespace {

using c10::CachingAllocator::kSmallSize;
using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;

constexpr auto kOfAll = static_cast<size_t>(StatType::AGGREGATE);
constexpr size_t OfPool(bool small) { return static_cast<size_t>(small ? StatType::SMALL_POOL : StatType::LARGE_POOL); }

void IncreaseBoth(StatArray& figure, size_t pool, size_t amount) {
  figure[kOfAll].increase(amount);
  figure[pool].increase(amount);
}
void DecreaseBoth(StatArray& figure, size_t pool, size_t amount) {
  figure[kOfAll].decrease(amount);
  figure[pool].decrease(amount);
}

template <class Change>
void ForEachFigure(c10::CachingDeviceAllocator::DeviceStats& s, Change change) {
  for (StatArray* figure : {&s.segment, &s.reserved_bytes}) {
    for (auto& stat : *figure) change(stat);
  }
}

}  // namespace

void Statistics::Note(const Record& record) {
  const auto charged = static_cast<int64_t>(record.charged.count()), requested = static_cast<int64_t>(record.requested.count());
  const size_t pool = OfPool(record.charged.count() <= kSmallSize);
  switch (record.kind) {
    case RecordKind::kAllocate: {
      const Amounts all{1, charged, requested, 1, charged};
      blocks_[kAll].Increase(all);
      blocks_[pool].Increase(all);
      break;
    }
    // What was requested counts until the block is free, as in PyTorch.
    case RecordKind::kFreeRequested: Decrease({1, charged, 0, 0, 0}, pool); break;
    case RecordKind::kFreeCompleted: Decrease({0, 0, requested, 1, charged}, pool); break;
    case RecordKind::kMapped:
    case RecordKind::kUnmapped: {
      const Piece piece{record.address, record.charged.count(), record.kind == RecordKind::kMapped};
      if (piece.mapped) {
        figures_.reserved_bytes[kAll].increase(piece.size);
        figures_.num_device_alloc += 1;
      } else {
        figures_.reserved_bytes[kAll].decrease(piece.size);
        figures_.num_device_free += 1;
      }
      MappedRange* const range = unplaced_.empty() ? RangeOf(piece.address) : nullptr;  // in their order
      if (range != nullptr) {
        Place(*range, piece);
      } else {
        unplaced_.push_back(piece);
      }
      break;
    }
    default: break;
  }
}

void Statistics::NoteFree(const Record& requested) {
  const auto charged = static_cast<int64_t>(requested.charged.count());
  Decrease({1, charged, static_cast<int64_t>(requested.requested.count()), 1, charged}, OfPool(requested.charged.count() <= kSmallSize));
}

c10::CachingDeviceAllocator::DeviceStats Statistics::figures() const {
  c10::CachingDeviceAllocator::DeviceStats s = figures_;
  const std::array<StatArray*, kFigures> places{&s.allocation, &s.allocated_bytes, &s.requested_bytes, &s.active, &s.active_bytes};
  for (size_t pool = 0; pool < kPools; ++pool) {
    const BlockFigures& b = blocks_[pool];
    for (size_t i = 0; i < kFigures; ++i) (*places[i])[pool] = {b.current[i], b.peak[i], b.up[i], b.down[i]};
  }
  return s;
}

Statistics::MappedRange* Statistics::RangeOf(uint64_t address) {
  const auto range = std::find_if(ranges_.begin(), ranges_.end(), [=](const MappedRange& r) { return r.begin <= address && address < r.end; });
  return range == ranges_.end() ? nullptr : &*range;
}

void Statistics::Place(MappedRange& range, const Piece& piece) {
  auto& reserved = figures_.reserved_bytes[OfPool(range.small)];
  if (piece.mapped) {
    if (range.mapped == 0) IncreaseBoth(figures_.segment, OfPool(range.small), 1);
    range.mapped += piece.size;
    return reserved.increase(piece.size);
  }
  range.mapped -= piece.size;
  reserved.decrease(piece.size);
  if (range.mapped > 0) return;
  DecreaseBoth(figures_.segment, OfPool(range.small), 1);
  std::swap(range, ranges_.back());  // another range may come to lie there
  ranges_.pop_back();
}

void Statistics::Learn(const std::vector<SegmentInfo>& segments, size_t known) {
  known = std::min(known, unplaced_.size());  // another thread may have learned them meanwhile
  for (const Piece& piece : std::span(unplaced_).first(known)) {
    MappedRange* range = RangeOf(piece.address);
    if (range == nullptr) {
      const auto segment = std::find_if(segments.begin(), segments.end(), [&](const SegmentInfo& s) {
        return s.range.base.address() <= piece.address && piece.address - s.range.base.address() < s.range.size.count();
      });
      // One that came and went before anybody looked has left nothing to be counted by pool.
      if (segment == segments.end()) continue;
      const uint64_t begin = segment->range.base.address();
      range = &ranges_.emplace_back(MappedRange{begin, begin + segment->range.size.count(), segment->small, 0});
    }
    if (piece.mapped || range->mapped >= piece.size) Place(*range, piece);
  }
  unplaced_.erase(unplaced_.begin(), unplaced_.begin() + static_cast<ptrdiff_t>(known));
}

void Statistics::ResetAccumulated() {
  for (BlockFigures& b : blocks_) b.up = b.down = {};
  ForEachFigure(figures_, [](auto& figure) { figure.reset_accumulated(); });
  figures_.num_alloc_retries = figures_.num_ooms = figures_.num_sync_all_streams = figures_.num_device_alloc = figures_.num_device_free = 0;
}

void Statistics::ResetPeak() {
  for (BlockFigures& b : blocks_) b.peak = b.current;
  ForEachFigure(figures_, [](auto& figure) { figure.reset_peak(); });
}

}  // namespace gpuledger::pytorch
