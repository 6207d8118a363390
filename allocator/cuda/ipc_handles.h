// allocator/cuda/ipc_handles.h - handles of physical memory as a string of bytes, and descriptors of another process.
//
// The string, little-endian: 8 bytes "gplgIPC1" (the last one is the version) · process id (4 bytes) · number of handles (4) ·
// when the process started, in ticks since boot (8) · then for each handle its descriptor there (4), a number (8) that no
// other handle of that process has, so that equal strings are equal memory, and its size (8) · FNV-1a of all that (8).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "descriptor.h"
#include "gpuledger/types.h"

namespace gpuledger::cuda {

struct SharedHandle {
  int descriptor;  // in the exporting process
  uint64_t number;
  Bytes size;
};

struct SharedHandles {
  int32_t process = 0;
  uint64_t started = 0;  // 0: could not be told
  std::vector<SharedHandle> handles;
  [[nodiscard]] Bytes size() const;
};

std::string Encode(const SharedHandles& shared);
// kInvalidArgument for whatever Encode does not make: cut, changed, of another version, sizes that are none.
absl::StatusOr<SharedHandles> Decode(std::string_view bytes);

// When a process was started, which tells it from a later one of the same number; 0 if the kernel does not say.
uint64_t StartOf(int32_t process);

// Takes the descriptors over from the process. Errors as of ImportedMemory::Import.
absl::StatusOr<std::vector<Descriptor>> TakeDescriptors(const SharedHandles& shared);

}  // namespace gpuledger::cuda
