#include "segments.h"

#include <sys/mman.h>

#include <algorithm>

namespace fake_cuda {

Address Segments::TakeFrom(Segment& segment, uint64_t size) {
  for (auto piece = segment.free.begin(); piece != segment.free.end(); ++piece) {
    const auto [offset, available] = *piece;
    if (available < size) continue;
    segment.free.erase(piece);
    if (available > size) segment.free.emplace(offset + size, available - size);
    return segment.address + offset;
  }
  return 0;
}

Address Segments::Take(uint64_t size, uint64_t most) {
  if (size > memory_.total()) return 0;
  size = Rounded(size);
  for (auto& [address, segment] : segments_) {
    if (const Address taken = TakeFrom(segment, size); taken != 0) return taken;
  }
  // A whole segment if there is room for it, else no more than what is asked for.
  uint64_t wanted = (size + segment_size_ - 1) / segment_size_ * segment_size_;
  if (wanted > most || reserved_ > most - wanted || wanted > memory_.free()) {
    wanted = (size + kGranule - 1) / kGranule * kGranule;
  }
  if (wanted > most || reserved_ > most - wanted) return 0;
  std::shared_ptr<Physical> physical = memory_.Take(wanted);
  if (physical == nullptr) return 0;
  const Address address = ReserveAddresses(wanted, kGranule);
  if (address == 0) return 0;
  physical->Map(address, 0, wanted, PROT_READ | PROT_WRITE);
  reserved_ += wanted;
  Segment& segment = segments_[address];
  segment = Segment{address, std::move(physical), {{0, wanted}}};
  return TakeFrom(segment, size);
}

const Segments::Segment& Segments::Find(Address address) const {
  return std::prev(segments_.upper_bound(address))->second;
}

void Segments::Give(Address address, uint64_t size) {
  Segment& segment = std::prev(segments_.upper_bound(address))->second;
  uint64_t offset = address - segment.address;
  size = Rounded(size);
  auto next = segment.free.lower_bound(offset);
  if (next != segment.free.end() && next->first == offset + size) {
    size += next->second;
    next = segment.free.erase(next);
  }
  if (next != segment.free.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      size += previous->second;
      segment.free.erase(previous);
    }
  }
  segment.free[offset] = size;
}

void Segments::Trim(uint64_t keep, bool all) {
  for (auto it = segments_.begin(); it != segments_.end() && reserved_ > keep;) {
    Segment& segment = it->second;
    if (!all && !segment.empty()) {
      ++it;
      continue;
    }
    reserved_ -= segment.physical->size();
    FreeAddresses(segment.address, segment.physical->size());
    it = segments_.erase(it);
  }
}

}  // namespace fake_cuda
