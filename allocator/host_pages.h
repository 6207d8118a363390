// allocator/host_pages.h - the system calls under the two host upstreams: what differs between them, and what they share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace gpuledger {

// The memory of handles. A handle's *place* says where its pages are while it is not mapped (an address, or an offset
// in a file). The caller has checked sizes and addresses and holds the upstream's mutex; what fails changes nothing.
class HostPages {
 public:
  virtual ~HostPages() = default;
  virtual absl::StatusOr<uint64_t> Create(size_t size) = 0;  // its place
  virtual absl::Status Release(uint64_t place, size_t size) = 0;
  // `address` is a PROT_NONE part of a reservation; it is one again after Unmap. At no moment may the addresses be
  // free: another thread's mmap could land there. Unmap returns the place where the pages are from then on.
  virtual absl::Status Map(uint64_t place, void* address, size_t size) = 0;
  virtual absl::StatusOr<uint64_t> Unmap(uint64_t place, void* address, size_t size) = 0;
  // At the end of the upstream: `place` is not mapped any more.
  virtual void Abandon(uint64_t place, size_t size) = 0;
};

// The error of `call` ("mremap") for `what` ("Map"): errno's name, and a remedy where one is known.
absl::Status ErrnoStatus(int error, std::string_view call, std::string_view what, size_t size);

// Private anonymous addresses, a multiple of 2 MiB (so that pages move by whole page tables, and huge ones stay whole).
absl::StatusOr<void*> MapAligned(size_t size, int protection, std::string_view what);

// Puts PROT_NONE over [address, address + size), in one step.
absl::Status CoverWithNothing(void* address, size_t size, std::string_view what);

// After a call that was to replace the mapping at `address` and failed: Linux may have removed it before it noticed.
// Reserves the addresses again unless they still are, with errno kept.
void ReserveAgain(void* address, size_t size);

}  // namespace gpuledger
