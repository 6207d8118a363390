#include "address_space.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace fake_cuda {
namespace {

constexpr int kNothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

void* Pointer(Address address) { return reinterpret_cast<void*>(address); }

void Require(bool done, const char* what) {
  if (done) return;
  std::perror(what);
  std::abort();
}

}  // namespace

Address ReserveAddresses(size_t size, size_t alignment, Address hint) {
  if (hint != 0 && hint % alignment == 0) {
    void* const at = mmap(Pointer(hint), size, PROT_NONE, kNothing | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == Pointer(hint)) return hint;
    if (at != MAP_FAILED) munmap(at, size);
  }
  if (size > SIZE_MAX - alignment) return 0;
  void* const start = mmap(nullptr, size + alignment, PROT_NONE, kNothing, -1, 0);
  if (start == MAP_FAILED) return 0;
  const Address first = reinterpret_cast<Address>(start);
  const Address aligned = (first + alignment - 1) / alignment * alignment;
  if (aligned > first) munmap(start, aligned - first);
  if (aligned < first + alignment) munmap(Pointer(aligned + size), first + alignment - aligned);
  return aligned;
}

void FreeAddresses(Address address, size_t size) { Require(munmap(Pointer(address), size) == 0, "fake CUDA: munmap"); }

void UnmapPages(Address address, size_t size) {
  Require(mmap(Pointer(address), size, PROT_NONE, kNothing | MAP_FIXED, -1, 0) != MAP_FAILED, "fake CUDA: mmap");
}

void ProtectPages(Address address, size_t size, int protection) {
  Require(mprotect(Pointer(address), size, protection) == 0, "fake CUDA: mprotect");
}

}  // namespace fake_cuda
