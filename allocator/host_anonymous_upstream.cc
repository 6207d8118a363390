// HostAnonymousUpstream: the pages of a handle that is not mapped are parked at addresses of their own; mremap moves them.
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "gpuledger/host_upstream.h"
#include "host_pages.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace gpuledger {
namespace {

void* Pointer(uint64_t place) { return reinterpret_cast<void*>(place); }

// The same bytes at `to` (fresh, never touched), and none at `from`, a little at a time so that the memory needed does
// not double. A page of zeros is not written: a page never touched stays untouched.
void MoveByCopy(char* from, char* to, size_t size) {
  constexpr size_t kStep = size_t{2} << 20;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t step = 0; step < size; step += kStep) {
    for (size_t at = step; at < step + kStep; at += page) {
      const char* const source = from + at;
      // A page is zeros if it begins with one and equals itself moved on by one.
      const bool zeros = source[0] == 0 && std::memcmp(source, source + 1, page - 1) == 0;
      if (!zeros) std::memcpy(to + at, source, page);
    }
    madvise(from + step, kStep, MADV_DONTNEED);
  }
}

class AnonymousPages final : public HostPages {
 public:
  absl::StatusOr<uint64_t> Create(size_t size) override {
    const absl::StatusOr<void*> parked = MapAligned(size, PROT_READ | PROT_WRITE, "CreateHandle");
    if (!parked.ok()) return parked.status();
    return reinterpret_cast<uint64_t>(*parked);
  }

  absl::Status Release(uint64_t place, size_t size) override {
    if (munmap(Pointer(place), size) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, "munmap", "ReleaseHandle", size);
  }

  absl::Status Map(uint64_t place, void* address, size_t size) override {
    if (mremap(Pointer(place), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, address) != MAP_FAILED) {
      return absl::OkStatus();
    }
    ReserveAgain(address, size);
    return ErrnoStatus(errno, "mremap", "Map", size);
  }

  // MREMAP_DONTUNMAP moves the pages and leaves an empty mapping behind, so the addresses are never free. Where they go
  // is left to Linux, which then has nothing to undo if it fails (aligned to 2 MiB since 6.7).
  absl::StatusOr<uint64_t> Unmap(uint64_t, void* address, size_t size) override {
    void* parked = mremap(address, size, size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
    if (parked == MAP_FAILED) {
      // EINVAL: a kernel before 5.7. EFAULT: someone split the mapping (madvise, mlock of a part). A plain mremap would
      // leave a hole behind for a moment, so the bytes are copied: slow, and safe.
      if (errno != EINVAL && errno != EFAULT) return ErrnoStatus(errno, "mremap", "Unmap", size);
      const absl::StatusOr<void*> fresh = MapAligned(size, PROT_READ | PROT_WRITE, "Unmap");
      if (!fresh.ok()) return fresh.status();
      parked = *fresh;
      MoveByCopy(static_cast<char*>(address), static_cast<char*>(parked), size);
    }
    // The pages have moved. Were this to fail, the addresses would be taken all the same, only not fault when touched.
    (void)CoverWithNothing(address, size, "Unmap");
    return reinterpret_cast<uint64_t>(parked);
  }

  void Abandon(uint64_t place, size_t size) override { munmap(Pointer(place), size); }
};

}  // namespace

HostAnonymousUpstream::HostAnonymousUpstream(Bytes total)
    : HostUpstream(total, false, std::make_unique<AnonymousPages>()) {}

}  // namespace gpuledger
