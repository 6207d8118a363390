// The device and the streams of the allocator's tests, and a small fake upstream whose fences pass when told.
#pragma once

#include "gpuledger/fake_upstream.h"

namespace gpuledger::testing {

inline const DeviceId kDevice{0};
inline Stream S(uintptr_t n) { return Stream(kDevice, reinterpret_cast<CUstream_st*>(n * 16)); }

inline FakeOptions SmallFake(Bytes total) {
  FakeOptions options;
  options.total = total;
  options.hold_fences = true;
  return options;
}

}  // namespace gpuledger::testing
