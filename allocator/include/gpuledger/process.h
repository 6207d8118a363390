// gpuledger/process.h - all allocators of the process at once, whoever made them.
//
// For whoever asks about the program and not about one device: bindings, settles, recorders. Sums are over the allocators,
// one read after the other; what other threads do in between may be in one and not in the other. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <absl/functional/function_ref.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/allocator.h"
#include "gpuledger/ledger.h"

namespace gpuledger {

// Calls `visit` with each allocator there is now, in the order in which they were made, with no lock held. Whoever destroys
// one meanwhile waits for the end; `visit` itself must not.
GPULEDGER_EXPORT void ForEachAllocator(absl::FunctionRef<void(CachingAllocator&)> visit);

// Of an owner, a role, or one role of one owner. Peaks are added up, each as its ledger has it.
GPULEDGER_EXPORT Usage ProcessUsage(std::optional<OwnerId> owner = {}, std::optional<Role> role = {});
GPULEDGER_EXPORT void ResetProcessPeak();

// The block in use or pending that holds this address. kNotFound otherwise.
GPULEDGER_EXPORT absl::StatusOr<LiveAllocation> FindInProcess(uint64_t address);
// CachingAllocator::Transfer of the block in use that starts there. kNotFound otherwise.
GPULEDGER_EXPORT absl::Status TransferInProcess(uint64_t address, Payer to);

// Blocks in use of whose bytes no address is found in the host memory of the process: whoever held them has lost them.
//
// Looked at: all private memory that can be written (globals, stacks, thread-locals, what malloc gave out, and what it has back
// and not yet used again), this thread's registers. Not: what the library itself notes, the blocks' own content, memory shared
// between processes, registers of other threads. So what it finds is lost, unless a thread that runs meanwhile has the only
// address in a register, or other blocks, a device or another process know it; what it does not find may be lost all the
// same, as long as an address lies somewhere. Reads all that memory once: some hundred milliseconds a GiB; not for programs
// with a sanitizer, whose shadow memory takes minutes. kUnavailable if
// the kernel does not let the process read its own memory.
GPULEDGER_EXPORT absl::StatusOr<std::vector<LiveAllocation>> FindLost();

// Open if it is open in some ledger, else closed if it is closed in one.
GPULEDGER_EXPORT Lineage ProcessLineage(OwnerId weight);
// kFailedPrecondition if there is no allocator yet: nobody would know of it.
GPULEDGER_EXPORT absl::Status OpenProcessLineage(OwnerId weight);
GPULEDGER_EXPORT absl::Status CloseProcessLineage(OwnerId weight);

// Roles source and staging, in use and pending, of all weights whose lineage is closed and whose name matches `glob`.
// kFailedPrecondition, "undecided", if there is no such weight, if the lineage of one that matches is open, or if an owner
// that matches holds such bytes and never had a lineage.
struct ResidualOfGlob {
  Bytes bytes;
  std::vector<LiveAllocation> allocations;
};
GPULEDGER_EXPORT absl::StatusOr<ResidualOfGlob> ProcessResidual(std::string_view glob);

}  // namespace gpuledger
