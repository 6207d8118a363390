#include "stack_native.h"

#include <pthread.h>
#include <unwind.h>

namespace gpuledger {
namespace {

struct Bounds {
  uintptr_t low = 0, high = 0;
};

Bounds StackOfThread() noexcept {
  Bounds bounds;
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return bounds;
  void* low = nullptr;
  size_t size = 0;
  if (pthread_attr_getstack(&attributes, &low, &size) == 0) {
    bounds.low = reinterpret_cast<uintptr_t>(low);
    bounds.high = bounds.low + size;
  }
  pthread_attr_destroy(&attributes);
  return bounds;
}

// Code without frame pointers leaves anything in the register: each step stays on this stack and goes outwards, so that garbage
// ends the walk and cannot do more.
size_t ByFramePointers(uintptr_t frame, uintptr_t* addresses, size_t room) noexcept {
  thread_local const Bounds stack = StackOfThread();
  size_t count = 0;
  while (count < room && frame >= stack.low && frame + 2 * sizeof(uintptr_t) <= stack.high && frame % sizeof(uintptr_t) == 0) {
    const auto* const words = reinterpret_cast<const uintptr_t*>(frame);
    if (words[1] < 4096) break;
    addresses[count++] = words[1];
    if (words[0] <= frame) break;
    frame = words[0];
  }
  return count;
}

struct Walk {
  uintptr_t* addresses;
  size_t room, count;
};

_Unwind_Reason_Code Step(_Unwind_Context* context, void* argument) {
  Walk& walk = *static_cast<Walk*>(argument);
  const uintptr_t address = _Unwind_GetIP(context);
  if (address == 0 || walk.count == walk.room) return _URC_END_OF_STACK;
  walk.addresses[walk.count++] = address;
  return _URC_NO_REASON;
}

}  // namespace

size_t TakeReturnAddresses(uintptr_t* addresses, size_t room) noexcept {
  constexpr size_t kEnough = 8;  // a program has more frames than that below an allocation, or all of them had pointers
  const size_t count = ByFramePointers(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)), addresses, room);
  if (count >= kEnough) return count;
  Walk walk{addresses, room, 0};
  _Unwind_Backtrace(Step, &walk);
  return walk.count;
}

}  // namespace gpuledger
