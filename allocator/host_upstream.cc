#include "gpuledger/host_upstream.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "host_pages.h"
#include "sync.h"
#include "upstream_books.h"

namespace gpuledger {
namespace {

constexpr size_t kUnit = size_t{2} << 20;
constexpr int kReservation = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

std::string_view ErrnoName(int error) {
  switch (error) {
    case ENOMEM: return "ENOMEM";
    case EINVAL: return "EINVAL";
    case EFAULT: return "EFAULT";
    case EAGAIN: return "EAGAIN";
    case EMFILE: return "EMFILE";
    case ENFILE: return "ENFILE";
    case EPERM: return "EPERM";
    case EACCES: return "EACCES";
    case ENOSYS: return "ENOSYS";
    case ENOSPC: return "ENOSPC";
    case EFBIG: return "EFBIG";
    case EOPNOTSUPP: return "EOPNOTSUPP";
    default: return "errno";
  }
}

std::string_view Remedy(int error) {
  switch (error) {
    case ENOMEM:
      return "; out of memory, of addresses (ulimit -v), of mappings (sysctl vm.max_map_count) or of what the system "
             "promises (sysctl vm.overcommit_memory)";
    case EAGAIN: return "; locked memory is limited (ulimit -l)";
    case EMFILE:
    case ENFILE: return "; too many open files (ulimit -n)";
    default: return "";
  }
}

}  // namespace

absl::Status ErrnoStatus(int error, std::string_view call, std::string_view what, size_t size) {
  const std::string message = fmt::format("{}: {} of {} failed with {} ({}, {}){}", what, call, ToString(Bytes(size)),
                                          ErrnoName(error), error, std::strerror(error), Remedy(error));
  switch (error) {
    case ENOMEM:
    case EAGAIN:
    case EMFILE:
    case ENFILE:
    case ENOSPC: return absl::ResourceExhaustedError(message);
    default: return absl::InternalError(message);
  }
}

absl::StatusOr<void*> MapAligned(size_t size, int protection, std::string_view what) {
  void* const first = mmap(nullptr, size, protection, kReservation, -1, 0);
  if (first == MAP_FAILED) return ErrnoStatus(errno, "mmap", what, size);
  if (reinterpret_cast<uintptr_t>(first) % kUnit == 0) return first;  // kernels since 6.7 see to it themselves
  munmap(first, size);
  if (size > SIZE_MAX - kUnit) return ErrnoStatus(ENOMEM, "mmap", what, size);
  void* const wide = mmap(nullptr, size + kUnit, protection, kReservation, -1, 0);
  if (wide == MAP_FAILED) return ErrnoStatus(errno, "mmap", what, size);
  // Should a trim fail (out of mappings), some addresses stay taken: no memory is lost.
  const size_t lead = kUnit - reinterpret_cast<uintptr_t>(wide) % kUnit;  // kUnit itself if aligned by chance
  char* const base = static_cast<char*>(wide) + lead % kUnit;
  if (base != wide) munmap(wide, lead);
  munmap(base + size, kUnit - lead % kUnit);
  return base;
}

absl::Status CoverWithNothing(void* address, size_t size, std::string_view what) {
  if (mmap(address, size, PROT_NONE, kReservation | MAP_FIXED, -1, 0) != MAP_FAILED) return absl::OkStatus();
  return ErrnoStatus(errno, "mmap", what, size);
}

void ReserveAgain(void* address, size_t size) {
  const int kept = errno;
  void* const got = mmap(address, size, PROT_NONE, kReservation | MAP_FIXED_NOREPLACE, -1, 0);
  if (got != MAP_FAILED && got != address) munmap(got, size);  // a kernel before 4.17 takes it for a hint
  errno = kept;
}

Bytes PhysicalMemory() {
  const auto pages = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES));
  return (Bytes(static_cast<uint64_t>(sysconf(_SC_PAGESIZE))) * pages).RoundDownTo(Bytes(kUnit));
}

struct HostUpstream::State {
  State(Bytes total, Bytes granularity, bool aliasing, std::unique_ptr<HostPages> given)
      : books(DeviceId(0), total, granularity, {.aliasing = aliasing, .host_accessible = true}), pages(std::move(given)) {}

  mutable Mutex mutex;  // held during system calls too: what is mapped where changes in one step
  UpstreamBooks books GPULEDGER_GUARDED_BY(mutex);
  const std::unique_ptr<HostPages> pages GPULEDGER_PT_GUARDED_BY(mutex);
};

HostUpstream::HostUpstream(Bytes total, bool aliasing, std::unique_ptr<HostPages> pages)
    : state_(std::make_unique<State>(total, Bytes(kUnit), aliasing, std::move(pages))) {}

HostUpstream::~HostUpstream() {
  State& s = *state_;
  MutexLock lock(s.mutex);
  for (const auto& [base, size] : s.books.ranges()) munmap(reinterpret_cast<void*>(base), size.count());
  for (const auto& [id, handle] : s.books.handles()) {
    if (handle.mappings == 0) s.pages->Abandon(handle.place, handle.size.count());  // the others went with their range
  }
}

TimePoint HostUpstream::now() const {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return TimePoint(static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count()));
}

void HostUpstream::VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const {
  MutexLock lock(state_->mutex);
  state_->books.VisitNotes(visit);
}

MemoryInfo HostUpstream::memory_info() const {
  MutexLock lock(state_->mutex);
  return state_->books.memory_info();
}

absl::StatusOr<Range> HostUpstream::Reserve(Bytes size) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckReserve(size); !status.ok()) return status;
  const absl::StatusOr<void*> base = MapAligned(size.count(), PROT_NONE, "Reserve");
  if (!base.ok()) return base.status();
  const Range range{DevicePtr(device(), reinterpret_cast<uint64_t>(*base)), size};
  s.books.AddRange(range);
  return range;
}

absl::Status HostUpstream::Unreserve(Range range) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckUnreserve(range); !status.ok()) return status;
  if (munmap(range.base.unsafe_host_pointer(), range.size.count()) != 0) {
    return ErrnoStatus(errno, "munmap", "Unreserve", range.size.count());
  }
  s.books.RemoveRange(range);
  return absl::OkStatus();
}

absl::StatusOr<HandleId> HostUpstream::CreateHandle(Bytes size) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckCreate(size); !status.ok()) return status;
  const absl::StatusOr<uint64_t> place = s.pages->Create(size.count());
  if (!place.ok()) return place.status();
  return s.books.AddHandle(size, *place);
}

absl::Status HostUpstream::ReleaseHandle(HandleId handle) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckRelease(handle); !status.ok()) return status;
  const UpstreamBooks::Handle& released = s.books.handle(handle);
  if (absl::Status status = s.pages->Release(released.place, released.size.count()); !status.ok()) return status;
  s.books.RemoveHandle(handle);
  return absl::OkStatus();
}

absl::Status HostUpstream::Map(DevicePtr address, HandleId handle) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckMap(address, handle); !status.ok()) return status;
  const UpstreamBooks::Handle& mapped = s.books.handle(handle);
  absl::Status status = s.pages->Map(mapped.place, address.unsafe_host_pointer(), mapped.size.count());
  if (status.ok()) s.books.AddMapping(address, handle);
  return status;
}

absl::Status HostUpstream::Unmap(DevicePtr address, HandleId handle) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  if (absl::Status status = s.books.CheckUnmap(address, handle); !status.ok()) return status;
  UpstreamBooks::Handle& mapped = s.books.handle(handle);
  const size_t size = mapped.size.count();
  const absl::StatusOr<uint64_t> place = s.pages->Unmap(mapped.place, address.unsafe_host_pointer(), size);
  if (!place.ok()) return place.status();
  mapped.place = *place;
  s.books.RemoveMapping(address, handle);
  return absl::OkStatus();
}

absl::StatusOr<FenceId> HostUpstream::RecordFence(Stream stream) {
  MutexLock lock(state_->mutex);
  if (absl::Status status = state_->books.CheckStream(stream); !status.ok()) return status;
  return state_->books.AddFence(stream);
}

absl::StatusOr<bool> HostUpstream::PollFence(FenceId fence) {
  MutexLock lock(state_->mutex);
  if (const auto stream = state_->books.FenceStream(fence); !stream.ok()) return stream.status();
  return true;
}

absl::Status HostUpstream::WaitFence(FenceId fence) {
  MutexLock lock(state_->mutex);
  return state_->books.FenceStream(fence).status();
}

absl::Status HostUpstream::MakeStreamWait(Stream stream, FenceId fence) {
  MutexLock lock(state_->mutex);
  if (const auto recorded_on = state_->books.FenceStream(fence); !recorded_on.ok()) return recorded_on.status();
  return state_->books.CheckStream(stream);
}

absl::Status HostUpstream::Synchronize() { return absl::OkStatus(); }

void HostUpstream::DropFence(FenceId fence) {
  MutexLock lock(state_->mutex);
  state_->books.RemoveFence(fence);
}

}  // namespace gpuledger
