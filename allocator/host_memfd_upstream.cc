// HostMemfdUpstream: one sparse memory file, of which each handle is a part.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "gpuledger/host_upstream.h"
#include "host_pages.h"

namespace gpuledger {
namespace {

class MemfdPages final : public HostPages {
 public:
  ~MemfdPages() override {
    if (file_ >= 0) close(file_);
  }

  // Offsets are never used again (the file may be 8 EiB long, and holes cost nothing): no handle ever sees the bytes of
  // an earlier one.
  absl::StatusOr<uint64_t> Create(size_t size) override {
    if (absl::Status status = RefuseInAChild("CreateHandle"); !status.ok()) return status;
    if (file_ < 0) file_ = memfd_create("gpuledger", MFD_CLOEXEC);
    if (file_ < 0) return ErrnoStatus(errno, "memfd_create", "CreateHandle", size);
    if (ftruncate(file_, end_ + static_cast<off_t>(size)) != 0) {
      return ErrnoStatus(errno, "ftruncate", "CreateHandle", size);
    }
    const auto place = static_cast<uint64_t>(end_);
    end_ += static_cast<off_t>(size);
    return place;
  }

  absl::Status Release(uint64_t place, size_t size) override {
    if (absl::Status status = RefuseInAChild("ReleaseHandle"); !status.ok()) return status;
    if (fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(place),
                  static_cast<off_t>(size)) == 0) {
      return absl::OkStatus();
    }
    return ErrnoStatus(errno, "fallocate", "ReleaseHandle", size);
  }

  absl::Status Map(uint64_t place, void* address, size_t size) override {
    void* const got = mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file_,
                           static_cast<off_t>(place));
    if (got != MAP_FAILED) return absl::OkStatus();
    ReserveAgain(address, size);
    return ErrnoStatus(errno, "mmap", "Map", size);
  }

  absl::StatusOr<uint64_t> Unmap(uint64_t place, void* address, size_t size) override {
    if (absl::Status status = CoverWithNothing(address, size, "Unmap"); !status.ok()) return status;
    return place;
  }

  void Abandon(uint64_t, size_t) override {}  // its memory goes with the file; a forked child must not punch it away

 private:
  // The file is shared with the parent: a child that made or released handles would do it in the parent's memory.
  absl::Status RefuseInAChild(std::string_view what) const {
    if (getpid() == creator_) return absl::OkStatus();
    return absl::FailedPreconditionError(std::string(what) + ": a forked child shares this memory file with its parent; "
                                         "use the host-anonymous upstream, whose memory is copied on write");
  }

  const pid_t creator_ = getpid();
  int file_ = -1;
  off_t end_ = 0;
};

}  // namespace

HostMemfdUpstream::HostMemfdUpstream(Bytes total) : HostUpstream(total, true, std::make_unique<MemfdPages>()) {}

}  // namespace gpuledger
