// gpuledger/torch.h - real at::Tensors in the ledger: the CPU allocator, who holds a storage, and Consume.
//
// InstallCpuAllocator puts a CachingAllocator under c10's CPU allocator: from then on each storage is charged to the
// owner of the thread that makes it. A storage (the bytes) is kept alive by its *holders*. LibTorch counts them and
// keeps no list: CountHolders turns the counts into numbers by kind, WatchSource lets a report ask for them later, and
// Consume refuses, poisons or reports when a weight's source is not the caller's alone.
//
// What counts cannot show: raw pointers (data_ptr() kept by someone) and DLPack exports made by C code that holds no
// tensor. They dangle when a storage is freed, as they would with any free. A copy-on-write sibling, a NumPy export, a
// mapped file and a blob are recognised, and refused by name.
//
// Thread-safe, except that nobody may use a storage while Consume frees it. Everything is legal after main().
// Read next: gpuledger_torch.h (the same for C and Python).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/functional/function_ref.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/allocator.h"
#include "gpuledger/owner.h"
#include "gpuledger/types.h"

namespace at {
class Tensor;
}

namespace gpuledger::pytorch {

// --- The CPU allocator -----------------------------------------------------------------------------------------------

// Puts our allocator (host-anonymous upstream, so forked data loaders keep copy-on-write memory) under every CPU tensor
// made from now on; tensors made before keep theirs. Options: GPULEDGER_CAP and its like, or `options` the first time.
// A second call changes nothing. Errors: those of AllocatorOptions::FromEnvironment; kFailedPrecondition if another
// allocator of a higher priority is in place. A tensor that does not fit throws c10::OutOfMemoryError with the report.
GPULEDGER_EXPORT absl::Status InstallCpuAllocator();
GPULEDGER_EXPORT absl::Status InstallCpuAllocator(const AllocatorOptions& options);
// Puts back what was there before. Live tensors keep our memory and stay charged.
GPULEDGER_EXPORT void UninstallCpuAllocator();
GPULEDGER_EXPORT bool CpuAllocatorInstalled();
// The allocator under CPU tensors, and its ledger; null before the first install. Lives until the process ends.
GPULEDGER_EXPORT CachingAllocator* CpuAllocator();

// --- Who holds a storage ---------------------------------------------------------------------------------------------

// References to a storage beyond the one that asks, by kind. A view appears twice: it is another tensor on the storage,
// and it refers to its base (detach() and Parameters do not).
struct HolderCounts {
  uint64_t tensor_handles = 0;     // handles of the same tensor: at::Tensor copies in locals and containers, bases of
                                   // views, inputs saved by autograd
  uint64_t aliases = 0;            // other tensors on its storage: views, detach(), Parameters, outputs saved by
                                   // autograd; and at::Storage handles
  uint64_t python_references = 0;  // names, containers and frames in Python that hold the tensor object
  uint64_t python_storages = 0;    // the same for the storage object (tensor.untyped_storage())

  [[nodiscard]] uint64_t total() const { return tensor_handles + aliases + python_references + python_storages; }
  HolderCounts& operator+=(const HolderCounts& other);
};
// "2 handles of the same tensor, 1 other tensor on its storage"; "no other holder".
GPULEDGER_EXPORT std::string Describe(const HolderCounts& holders);
// Holders of the tensor's storage beyond this very handle, against the counts of a fresh tensor. All zero for a tensor
// without storage.
GPULEDGER_EXPORT HolderCounts CountHolders(const at::Tensor& tensor);

// Remembers the tensor as one of `owner`'s, by weak references: it keeps nothing alive.
GPULEDGER_EXPORT void WatchSource(const at::Tensor& tensor, OwnerId owner);
// The holders of one watched storage that is still alive.
struct WatchedStorage {
  Bytes size;  // of the storage; zero once its bytes are freed
  HolderCounts holders;
};
GPULEDGER_EXPORT std::vector<WatchedStorage> Holders(OwnerId owner);

// --- Consume ---------------------------------------------------------------------------------------------------------

enum class ConsumePolicy : uint8_t {
  kRefuse,  // shared: an error that names count, owner and holders; nothing is freed
  kPoison,  // shared: the bytes are freed at once; reading any alias throws c10::Error with the weight's name
  kReport,  // shared: nothing is freed, the report says who holds it
};

struct ConsumeReport {
  std::string weight;
  Payer payer;           // who paid for the storage; unattributed if it is not in the ledger
  Bytes bytes;           // the storage's size
  Bytes charged;         // the ledger's charge for it; zero if it is not in the ledger
  HolderCounts holders;  // beyond the caller's handle, counted just before the bytes were freed
  bool freed = false;
  Bytes remaining;       // the payer's source and staging bytes after the step, from the ledger; 0 proves that nothing
                         // is left of a storage that was in it
  std::string obstacle;  // kReport: why these bytes cannot be freed through a tensor; empty if they can
};

// The last step of a weight's source: checks who else shares the storage, lets `read` use the tensor (quantize it),
// checks again, and frees the bytes now instead of when the last reference goes. After freeing, `tensor` is undefined
// and any other tensor on the storage throws when it is read: indexing by tensor or mask, printing, copying,
// arithmetic, data_ptr, item. A basic index or view() only makes another view, whose reading throws.
// Errors: kFailedPrecondition, shared under kRefuse; kPermissionDenied, bytes that are not ours to free (NumPy exports,
// mapped files, blobs, copy-on-write siblings), under kRefuse and kPoison; kInvalidArgument, a tensor without storage
// or one that was consumed before; `read`'s own. After an error nothing is freed and `tensor` is as it was.
// CUDA: bytes are freed in the order of the storage's stream. What `read` queued on another stream needs record_stream() first, as
// for any tensor.
// Synchronises the device: no.
GPULEDGER_EXPORT absl::StatusOr<ConsumeReport> Consume(at::Tensor& tensor, std::string_view weight,
                                                       ConsumePolicy policy);
GPULEDGER_EXPORT absl::StatusOr<ConsumeReport> Consume(at::Tensor& tensor, std::string_view weight,
                                                       ConsumePolicy policy,
                                                       absl::FunctionRef<absl::Status(const at::Tensor&)> read);

// --- The report at the end of a load ---------------------------------------------------------------------------------

struct ResidualReportOptions {
  uint64_t weights = 6;   // described in full; the others are counted
  bool collapse = false;  // weights that differ in their layer alone share a line, and count as one
  bool colour = false;   // ANSI colours: for a terminal
};
// Every weight whose lineage is closed and whose source or staging bytes are still there: name, bytes, holders by kind
// (of watched sources), and totals that add up, over all devices. One line if there is none.
GPULEDGER_EXPORT std::string ResidualReport(const ResidualReportOptions& options);

}  // namespace gpuledger::pytorch
