#include "statistics.h"

#include <algorithm>

#include <c10/core/AllocatorConfig.h>

namespace gpuledger::pytorch {
namespace {

using c10::CachingAllocator::kSmallSize;
using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;

constexpr auto kAll = static_cast<size_t>(StatType::AGGREGATE);
constexpr size_t OfPool(bool small) { return static_cast<size_t>(small ? StatType::SMALL_POOL : StatType::LARGE_POOL); }

void Increase(StatArray& figure, size_t pool, size_t amount) {
  figure[kAll].increase(amount);
  figure[pool].increase(amount);
}
void Decrease(StatArray& figure, size_t pool, size_t amount) {
  figure[kAll].decrease(amount);
  figure[pool].decrease(amount);
}

template <class Change>
void ForEachFigure(c10::CachingDeviceAllocator::DeviceStats& s, Change change) {
  for (StatArray* figure : {&s.allocation, &s.segment, &s.active, &s.inactive_split, &s.allocated_bytes, &s.reserved_bytes, &s.active_bytes,
                            &s.inactive_split_bytes, &s.requested_bytes}) {
    for (auto& stat : *figure) change(stat);
  }
  change(s.oversize_allocations);
  change(s.oversize_segments);
}

}  // namespace

void Statistics::Note(const Record& record) {
  const size_t charged = record.charged.count(), pool = OfPool(charged <= kSmallSize);
  switch (record.kind) {
    case RecordKind::kAllocate:
      Increase(figures_.allocation, pool, 1);
      Increase(figures_.allocated_bytes, pool, charged);
      Increase(figures_.requested_bytes, pool, record.requested.count());
      Increase(figures_.active, pool, 1);
      Increase(figures_.active_bytes, pool, charged);
      break;
    case RecordKind::kFreeRequested:
      Decrease(figures_.allocation, pool, 1);
      Decrease(figures_.allocated_bytes, pool, charged);
      Decrease(figures_.requested_bytes, pool, record.requested.count());
      break;
    case RecordKind::kFreeCompleted:
      Decrease(figures_.active, pool, 1);
      Decrease(figures_.active_bytes, pool, charged);
      break;
    case RecordKind::kMapped:
    case RecordKind::kUnmapped: {
      const Piece piece{record.address, charged, record.kind == RecordKind::kMapped};
      if (piece.mapped) {
        figures_.reserved_bytes[kAll].increase(charged);
        figures_.num_device_alloc += 1;
      } else {
        figures_.reserved_bytes[kAll].decrease(charged);
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

Statistics::MappedRange* Statistics::RangeOf(uint64_t address) {
  const auto range = std::find_if(ranges_.begin(), ranges_.end(), [=](const MappedRange& r) { return r.begin <= address && address < r.end; });
  return range == ranges_.end() ? nullptr : &*range;
}

void Statistics::Place(MappedRange& range, const Piece& piece) {
  auto& reserved = figures_.reserved_bytes[OfPool(range.small)];
  if (piece.mapped) {
    if (range.mapped == 0) Increase(figures_.segment, OfPool(range.small), 1);
    range.mapped += piece.size;
    return reserved.increase(piece.size);
  }
  range.mapped -= piece.size;
  reserved.decrease(piece.size);
  if (range.mapped > 0) return;
  Decrease(figures_.segment, OfPool(range.small), 1);
  std::swap(range, ranges_.back());  // another range may come to lie there
  ranges_.pop_back();
}

void Statistics::Learn(const std::vector<SegmentInfo>& segments) {
  for (const Piece& piece : unplaced_) {
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
  unplaced_.clear();
}

void Statistics::ResetAccumulated() {
  ForEachFigure(figures_, [](auto& figure) { figure.reset_accumulated(); });
  figures_.num_alloc_retries = figures_.num_ooms = figures_.num_sync_all_streams = figures_.num_device_alloc = figures_.num_device_free = 0;
}

void Statistics::ResetPeak() {
  ForEachFigure(figures_, [](auto& figure) { figure.reset_peak(); });
}

}  // namespace gpuledger::pytorch
