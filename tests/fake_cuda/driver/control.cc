#include "driver.h"
#include "entry.h"
#include "fake_cuda.h"

#define CONTROL extern "C" __attribute__((visibility("default")))

CONTROL void fakeCudaHoldEvents(int hold) {
  const std::lock_guard lock(fake_cuda::driver().mutex);
  if (hold != 0) {
    fake_cuda::driver().held.Hold();
  } else {
    fake_cuda::driver().held.ReleaseAll();
  }
}

CONTROL void fakeCudaReleaseEvents(unsigned long long count) {
  const std::lock_guard lock(fake_cuda::driver().mutex);
  fake_cuda::driver().held.Release(count);
}

CONTROL unsigned long long fakeCudaCallCount(const char* function) { return fake_cuda::CallCount(function); }
CONTROL int fakeCudaInjectFaults(const char* faults) { return fake_cuda::AddFaults(faults); }
CONTROL void fakeCudaClearFaults(void) { fake_cuda::ClearFaults(); }
