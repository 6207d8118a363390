// allocator/this_thread.h - an object of each thread that may be asked for when the thread's own objects are gone.
#pragma once

#include <utility>

namespace gpuledger {

// A T of this thread, null once the thread's own objects are gone: atexit handlers and the destructors of other
// thread-local objects may still call us then.
template <class T>
T* OfThisThread() {
  static thread_local T* value = nullptr;
  static thread_local bool ended = false;
  struct Guard {
    ~Guard() {
      ended = true;
      delete std::exchange(value, nullptr);
    }
  };
  if (value == nullptr && !ended) {
    static thread_local Guard guard;
    (void)&guard;
    value = new T;
  }
  return value;
}

}  // namespace gpuledger
