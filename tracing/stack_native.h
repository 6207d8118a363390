// tracing/stack_native.h - return addresses of the calling thread.
//
// By frame pointers, about a nanosecond a frame. Where those stop early, because code was built without them, by the tables of
// exception handling, some hundred nanoseconds a frame: but what was found that way is remembered with the places on the
// stack where each return address lay, and the next time the same words lie in the same places it is the same stack.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpuledger {

inline constexpr size_t kMostNativeFrames = 48;

// Up to kMostNativeFrames return addresses, innermost first; how many. `key`: what else tells this stack from others, such as
// a hash of the Python stack; it makes remembering work well.
size_t TakeReturnAddresses(uintptr_t* addresses, uint64_t key) noexcept;

}  // namespace gpuledger
