// allocator/scopes.h - owner scopes, as the rest of the core sees them.
#pragma once

#include "gpuledger/owner.h"

namespace gpuledger {

// Whether InternOwner returned this id: for ids that came from outside.
bool IsOwner(OwnerId owner);

// The transient scopes that are open, around a fork.
void LockScopesForFork();
void UnlockScopesAfterFork();

}  // namespace gpuledger
