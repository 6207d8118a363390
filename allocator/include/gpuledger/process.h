// gpuledger/process.h - all ledgers of the process at once, whoever keeps them.
//
// For whoever asks about the program and not about one device: bindings, settles, recorders. Sums are over the ledgers,
// one read after the other; what other threads do in between may be in one and not in the other. Thread-safe.
//
// A ledger is kept by an allocator of ours, or by a way in that only watches somebody else's (torch/cuda/observe.h). Each
// CachingAllocator is known from its beginning to its end; any other keeper registers itself. Whatever is asked of the process goes
// to all keepers alike: sums, lineages, FindInProcess and TransferInProcess here; the steps of a settle, the facts of its
// blocks and the live set that a recording begins with in tracing; and a fork locks them all, in the order in which they came.
// Only FindLost is about allocators alone: it reads host memory for addresses, and leaves out their own notes.
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

// Who keeps a ledger. Every function is called with no lock held but, between LockForFork and UnlockAfterFork, the keeper's own.
class GPULEDGER_EXPORT LedgerKeeper {
 public:
  virtual ~LedgerKeeper() = default;
  [[nodiscard]] virtual Ledger& ledger() = 0;
  [[nodiscard]] virtual TimePoint now() const = 0;  // by the clock that stamps the ledger's records
  // Of what is behind the ledger. Waits for no device and for no lock that is held while a record is written.
  [[nodiscard]] virtual Totals totals() const = 0;
  // Whose memory it is: a string literal, as Upstream::name; and what its driver says of it now.
  [[nodiscard]] virtual std::string_view memory_name() const = 0;
  [[nodiscard]] virtual MemoryInfo memory_info() const = 0;
  // The block in use or pending that holds this address. kNotFound otherwise.
  [[nodiscard]] virtual absl::StatusOr<LiveAllocation> Find(uint64_t address) const = 0;
  // Re-tags the block in use that starts there (Ledger::Transfer). kNotFound otherwise.
  virtual absl::Status Transfer(uint64_t address, Payer to) = 0;
  // Waits for all blocks that are pending now; synchronises the device. Errors as CachingAllocator::Settle.
  virtual absl::Status Settle() = 0;
  // Around each fork(): a child finds the keeper and its ledger whole.
  virtual void LockForFork() = 0;
  virtual void UnlockAfterFork() = 0;
  virtual void ForgetOtherThreads() = 0;  // in the child
};
// From here on the process knows the ledger. A keeper that ends is unregistered first, which waits for those that visit it.
// Allocators do both themselves.
GPULEDGER_EXPORT void RegisterKeeper(LedgerKeeper* keeper);
GPULEDGER_EXPORT void UnregisterKeeper(LedgerKeeper* keeper);

// Calls `visit` with each keeper there is now, in the order in which they came, with no lock held. Whoever destroys
// one meanwhile waits for the end; `visit` itself must not.
GPULEDGER_EXPORT void ForEachKeeper(absl::FunctionRef<void(LedgerKeeper&)> visit);
// The same of the allocators alone.
GPULEDGER_EXPORT void ForEachAllocator(absl::FunctionRef<void(CachingAllocator&)> visit);

// Of an owner, a role, or one role of one owner. Peaks are added up, each as its ledger has it. Each ledger is flushed first, so what
// threads did before counts, whatever they hold back; where only this thread's own changes matter, Ledger::usage is faster.
GPULEDGER_EXPORT Usage ProcessUsage(std::optional<OwnerId> owner = {}, std::optional<Role> role = {});
GPULEDGER_EXPORT void ResetProcessPeak();

// The block in use or pending that holds this address. kNotFound otherwise.
GPULEDGER_EXPORT absl::StatusOr<LiveAllocation> FindInProcess(uint64_t address);
// Re-tags the block in use that starts there. kNotFound otherwise.
GPULEDGER_EXPORT absl::Status TransferInProcess(uint64_t address, Payer to);

// Blocks in use of whose bytes no address is found in the host memory of the process: whoever held them has lost them.
//
// Looked at: all private memory that can be written (globals, stacks, thread-locals, what malloc gave out, and what it has back
// and not yet used again), this thread's registers. Not: what the library itself notes, the blocks' own content, memory shared
// between processes, registers of other threads. So what it finds is lost, unless a thread that runs meanwhile has the only
// address in a register, or other blocks, a device or another process know it; what it does not find may be lost all the
// same, as long as an address lies somewhere. A driver knows where it has mapped memory: what it notes of the middle of a block
// shows no holder, but a block of a device that begins where a mapping does is not found lost. Reads all that memory once: some
// hundred milliseconds a GiB; not for programs with a sanitizer, whose shadow memory takes minutes. kUnavailable if the kernel does
// not let the process read its own memory.
GPULEDGER_EXPORT absl::StatusOr<std::vector<LiveAllocation>> FindLost();

// Open if it is open in some ledger, else closed if it is closed in one.
GPULEDGER_EXPORT Lineage ProcessLineage(OwnerId weight);
// kFailedPrecondition if there is no ledger yet: nobody would know of it.
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
