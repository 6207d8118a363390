// tracing/stack_native.h - return addresses of the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpuledger {

// Up to `room` return addresses, innermost first, beginning with that of the function that calls this; how many. Code without
// frame pointers is no obstacle: by the tables of exception handling (unwind_rule.h), whose answer is cached for each address, some nanoseconds a
// frame. What those rules do not cover (signal frames, generated code, a stack that is not the thread's own) is left to the
// unwinder of the compiler's library, some hundred nanoseconds a frame.
size_t TakeReturnAddresses(uintptr_t* addresses, size_t room) noexcept;

// After a module was unloaded.
void ForgetUnwindRules() noexcept;

// Around fork: no thread is within the loader for us.
void LockUnwindRulesForFork() noexcept;
void UnlockUnwindRulesAfterFork() noexcept;

}  // namespace gpuledger
