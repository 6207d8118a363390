// gpuledger/cuda_ipc.h - device memory of one process in another one.
//
// CudaUpstream::Export names handles of physical memory in a short string of bytes, which may travel any way; Import maps
// them one behind the other into addresses of its own. The string holds no memory and gives no right: the importer takes
// file descriptors out of the exporting process (pidfd_getfd), which the kernel allows to whoever may trace that process
// (same user; with Yama at level 1, kernel.yama.ptrace_scope, only ancestors or those named by prctl(PR_SET_PTRACER); in
// containers possibly CAP_SYS_PTRACE). PyTorch shares expandable segments the same way. Both see the same process ids.
//
// Memory stays as long as either process has it. What is written by one is seen by the other as between two streams: after
// an event or a synchronisation of the device.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/types.h"

namespace gpuledger {

struct ExportedMemory {
  std::string handles;  // for Import: bytes, not text
  Bytes offset;         // of the exported address from the first byte that Import maps
};

// Memory of another process (or of this one), mapped for one device. Move-only; not charged to any owner.
// Thread-safe but for its end and for moves.
class [[nodiscard]] GPULEDGER_EXPORT ImportedMemory {
 public:
  // Maps what `handles` names, readable and writable by `device`. Whatever the bytes are, nothing but an error comes of bytes
  // that no Export made or that have changed on the way. Errors: kInvalidArgument for such bytes; kNotFound if that process
  // has ended, or has closed the descriptors because it gave the memory back; kPermissionDenied, with the way out, if the
  // kernel refuses; kUnimplemented on Linux before 5.6; those of CudaUpstream::Open and the driver's. An error leaves nothing
  // behind. Synchronises no device.
  static absl::StatusOr<ImportedMemory> Import(DeviceId device, std::string_view handles);
  // Waits for all work of the device, then unmaps. A stream capture that is going on is invalidated by that, and the memory
  // left mapped to the process's end: whoever captures keeps it until afterwards. After the driver's end, and in a forked child,
  // nothing is called.
  ~ImportedMemory();
  ImportedMemory(ImportedMemory&& other) noexcept;
  ImportedMemory& operator=(ImportedMemory&& other) noexcept;

  [[nodiscard]] DevicePtr base() const;
  [[nodiscard]] Bytes size() const;
  // As CudaUpstream::AllowPeer, for this memory.
  absl::Status AllowPeer(DeviceId peer);

 private:
  struct State;
  explicit ImportedMemory(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gpuledger
