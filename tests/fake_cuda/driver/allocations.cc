#include "allocations.h"

#include <fmt/format.h>
#include <sys/mman.h>

namespace fake_cuda {

int Allocation::protection() const {
  int all = PROT_NONE;
  for (const auto& [of_device, may] : access) all |= may;
  return all;
}

Allocation& Allocations::Add(Allocation allocation) {
  allocation.id = next_id_++;
  freed_.erase(allocation.address);
  return all_.insert_or_assign(allocation.address, std::move(allocation)).first->second;
}

void Allocations::Remove(Address address, const char* by) {
  constexpr size_t kRemembered = 1 << 20;
  if (freed_.size() >= kRemembered) freed_.clear();
  freed_[address] = by;
  all_.erase(address);
}

Allocation* Allocations::At(Address address) {
  const auto found = all_.find(address);
  return found == all_.end() ? nullptr : &found->second;
}

Allocation* Allocations::Containing(Address address) {
  const auto after = all_.upper_bound(address);
  if (after == all_.begin()) return nullptr;
  Allocation& before = std::prev(after)->second;
  return address < before.end() ? &before : nullptr;
}

bool Allocations::Overlaps(Address address, uint64_t size) const {
  const auto after = all_.lower_bound(address + size);
  return after != all_.begin() && std::prev(after)->second.end() > address;
}

bool Allocations::Covers(Address address, uint64_t size) {
  for (const Address end = address + size; address < end;) {
    const Allocation* const allocation = Containing(address);
    if (allocation == nullptr) return false;
    if (allocation->family == Family::kMapped && allocation->protection() == PROT_NONE) return false;
    address = allocation->end();
  }
  return true;
}

std::string Allocations::Explain(Address address) {
  if (const auto freed = freed_.find(address); freed != freed_.end()) {
    return fmt::format("{:#x} was freed before, by {}", address, freed->second);
  }
  if (const Allocation* const allocation = Containing(address)) {
    if (allocation->address != address) {
      return fmt::format("{:#x} lies inside the {} bytes that {} gave at {:#x}", address, allocation->size,
                         AllocatedBy(allocation->family), allocation->address);
    }
    return fmt::format("{:#x} comes from {} and goes back with {}", address, AllocatedBy(allocation->family),
                       FreedBy(allocation->family));
  }
  return fmt::format("{:#x} was never allocated", address);
}

const char* AllocatedBy(Family family) {
  switch (family) {
    case Family::kDevice:
      return "cuMemAlloc";
    case Family::kManaged:
      return "cuMemAllocManaged";
    case Family::kHost:
      return "cuMemHostAlloc";
    case Family::kRegistered:
      return "cuMemHostRegister";
    case Family::kPool:
      return "cuMemAllocAsync";
    case Family::kIpc:
      return "cuIpcOpenMemHandle";
    case Family::kGraph:
      return "a memory node of a graph";
    case Family::kMapped:
      return "cuMemMap";
  }
  return "?";
}

const char* FreedBy(Family family) {
  switch (family) {
    case Family::kDevice:
    case Family::kManaged:
      return "cuMemFree";
    case Family::kHost:
      return "cuMemFreeHost";
    case Family::kRegistered:
      return "cuMemHostUnregister";
    case Family::kPool:
      return "cuMemFreeAsync or cuMemFree";
    case Family::kIpc:
      return "cuIpcCloseMemHandle";
    case Family::kGraph:
      return "cuMemFreeAsync or a free node";
    case Family::kMapped:
      return "cuMemUnmap";
  }
  return "?";
}

}  // namespace fake_cuda
