// holders.h - reference counts of one tensor and its storage, read without taking a reference.
#pragma once

#include <c10/core/TensorImpl.h>

#include "gpuledger/torch.h"

namespace gpuledger::pytorch {

// What belongs to the one who asks, and is therefore no holder.
struct OwnReferences {
  uint32_t handles = 0;            // at::Tensor handles
  uint64_t python_references = 0;  // references to the Python object
};

// The holders of the storage under `impl`, beyond `own`. `impl` is alive and has a storage.
HolderCounts CountHolders(const c10::TensorImpl& impl, OwnReferences own);

// Why the bytes cannot be freed through a tensor, as a phrase with a subject ("a NumPy array shares its bytes");
// empty if they can be.
std::string Obstacle(const c10::StorageImpl& storage);

// Consume, for a tensor that the caller holds by `own`; frees the bytes but drops no handle.
absl::StatusOr<ConsumeReport> ConsumeStorage(c10::TensorImpl& impl, OwnReferences own, std::string_view weight,
                                             ConsumePolicy policy, absl::FunctionRef<absl::Status()> read);

// Held around fork(): the registry of watched sources.
void LockWatchesForFork();
void UnlockWatchesAfterFork();

}  // namespace gpuledger::pytorch
