// Addresses of the process: ranges without memory, which device memory is mapped into.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fake_cuda {

using Address = uint64_t;

// A range that traps every access, or 0. `alignment` is a power of two.
Address ReserveAddresses(size_t size, size_t alignment, Address hint = 0);
void FreeAddresses(Address address, size_t size);

// Takes the memory away; the range stays reserved and traps.
void UnmapPages(Address address, size_t size);
void ProtectPages(Address address, size_t size, int protection);

}  // namespace fake_cuda
