// Small allocations, cut out of larger mapped pieces of device memory: first fit, 512 bytes at least.
//
// Plain allocations of up to 1 MiB share pieces of 2 MiB, and a pool's share pieces of 32 MiB, as the real driver does
// it.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "device_memory.h"

namespace fake_cuda {

class Segments {
 public:
  static constexpr uint64_t kUnit = 512;

  struct Segment {
    Address address;
    std::shared_ptr<Physical> physical;
    std::map<uint64_t, uint64_t> free;  // offset -> size

    bool empty() const { return free.size() == 1 && free.begin()->second == physical->size(); }
  };

  Segments(DeviceMemory& memory, uint64_t segment_size) : memory_(memory), segment_size_(segment_size) {}
  ~Segments() { Trim(0, true); }
  Segments(const Segments&) = delete;
  Segments& operator=(const Segments&) = delete;

  // 0: not enough device memory, or it would reserve more than `most`.
  Address Take(uint64_t size, uint64_t most = UINT64_MAX);
  void Give(Address address, uint64_t size);

  const Segment& Find(Address address) const;  // the segment that an allocation lies in
  uint64_t reserved() const { return reserved_; }

  // Gives segments without allocations back until no more than `keep` bytes are reserved; with `all` also the others.
  void Trim(uint64_t keep, bool all = false);

 private:
  static uint64_t Rounded(uint64_t size) { return (size + kUnit - 1) / kUnit * kUnit; }
  Address TakeFrom(Segment& segment, uint64_t size);

  DeviceMemory& memory_;
  const uint64_t segment_size_;
  uint64_t reserved_ = 0;
  std::map<Address, Segment> segments_;
};

}  // namespace fake_cuda
