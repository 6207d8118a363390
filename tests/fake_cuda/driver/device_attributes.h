#pragma once

#include "driver.h"

namespace fake_cuda {

CUresult AttributeOf(const Device& device, CUdevice_attribute attribute, int& value);

inline int PciBus(const Device& device) { return 0x10 + device.ordinal; }

}  // namespace fake_cuda
