// module_scopes.h - the forward pass of a module as a scope, and whose module an operation of the backward pass belongs to.
//
// A node of autograd's graph has the number that the forward thread gave it when it was made. Entering and leaving a module notes
// the number that comes next, so that a node's number says in which module it was made: nothing is hooked into the graph.
#pragma once

#include <optional>

#include <absl/status/status.h>

#include "gpuledger/owner.h"

namespace gpuledger::pytorch {

// The module of the node that this thread runs just now in a backward pass; none if it runs none, or one that was made outside all
// modules, or too long ago: the newest 65,536 changes from module to module are known of each thread. A few nanoseconds outside
// backward passes.
std::optional<OwnerId> ModuleOfBackward() noexcept;

// This thread's forward pass is in `module`, which pays as activation: absolutely, not below the scope around it, whose transient
// scope it is in. Entries that were made deeper in the thread's stack than this call were left by an exception that nobody told us of:
// they are ended.
absl::Status EnterModule(OwnerId module);
// Ends the innermost entry of `module` and those inside it. Nothing if there is none.
absl::Status LeaveModule(OwnerId module);

}  // namespace gpuledger::pytorch
