// allocator/fork_guard.h - fork finds every keeper of a ledger whole, in one fixed order: keepers, their ledgers, then names.
#pragma once

#include "gpuledger/allocator.h"

namespace gpuledger {

// Every live allocator is registered as a keeper (process.h); the first registration sets up pthread_atfork.
void RegisterForFork(CachingAllocator* allocator);
void UnregisterForFork(CachingAllocator* allocator);

// The tables of names (owner.cc), locked last: reports ask for names under an allocator's lock.
void LockNamesForFork();
void UnlockNamesAfterFork();

}  // namespace gpuledger
