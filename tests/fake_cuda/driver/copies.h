// Copies and fills of linear memory: checked when they are submitted, done when their stream gets there.
#pragma once

#include <functional>

#include "driver.h"

namespace fake_cuda {

struct Fill {
  Address to;
  uint64_t pitch;  // bytes from one row to the next
  unsigned value;
  unsigned element;  // bytes of a value: 1, 2 or 4
  uint64_t width;    // values in a row
  uint64_t height;

  void Run() const;
};

CUresult Check(const Fill& fill);

// What a copy in up to three dimensions does. Arrays are not supported.
CUresult Prepare(const CUDA_MEMCPY3D& copy, std::function<void()>& work);

}  // namespace fake_cuda
