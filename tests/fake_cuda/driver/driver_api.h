// The driver API with all its versions under their exported names: no macro turns cuMemAlloc into cuMemAlloc_v2.
#pragma once

#define __CUDA_API_VERSION_INTERNAL 1
#include <cuda.h>
