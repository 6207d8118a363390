// allocator/scratch_memory.h - memory of the kernel's own, for what must not be found on the heap.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace gpuledger {

// For std::vector: pages of their own, given back at once. `T` needs no more than a page's alignment.
template <class T>
struct ScratchMemory {
  using value_type = T;
  ScratchMemory() = default;
  template <class U>
  ScratchMemory(const ScratchMemory<U>&) {}  // NOLINT: what allocators are
  T* allocate(size_t n) {
    void* const pages = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    return static_cast<T*>(pages);
  }
  void deallocate(T* pages, size_t n) { munmap(pages, n * sizeof(T)); }
  friend bool operator==(const ScratchMemory&, const ScratchMemory&) { return true; }
};

}  // namespace gpuledger
