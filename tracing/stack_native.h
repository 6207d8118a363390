// tracing/stack_native.h - return addresses of the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpuledger {

// Up to `room` return addresses, innermost first; how many. By frame pointers, about a nanosecond a frame; where those stop
// early, because code was built without them, by the tables of exception handling, some hundred nanoseconds a frame.
size_t TakeReturnAddresses(uintptr_t* addresses, size_t room) noexcept;

}  // namespace gpuledger
