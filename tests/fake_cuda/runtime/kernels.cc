// Kernels: what can be asked and set about one, and the launch configuration of the <<<>>> syntax.
#include <vector>

#include "symbols.h"

using namespace fake_cudart;

namespace {

struct LaunchConfiguration {
  dim3 grid, block;
  size_t shared_memory;
  cudaStream_t stream;
};

std::vector<LaunchConfiguration>& Configurations() {
  thread_local std::vector<LaunchConfiguration> configurations;
  return configurations;
}

// `body` takes the driver, the kernel and the current device.
template <typename Body>
cudaError_t WithKernel(const void* function, Body body) {
  return WithContext([&](const Driver& driver) {
    CUkernel kernel = nullptr;
    int device = 0;
    if (const cudaError_t error = FindKernel(driver, function, &kernel)) return error;
    if (const cudaError_t error = CurrentDevice(driver, &device)) return error;
    return FromDriver(body(driver, kernel, device));
  });
}

struct AttributeField {
  CUfunction_attribute attribute;
  int cudaFuncAttributes::*field;
};
struct SizeField {
  CUfunction_attribute attribute;
  size_t cudaFuncAttributes::*field;
};

constexpr AttributeField kFields[] = {
    {CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, &cudaFuncAttributes::maxThreadsPerBlock},
    {CU_FUNC_ATTRIBUTE_NUM_REGS, &cudaFuncAttributes::numRegs},
    {CU_FUNC_ATTRIBUTE_PTX_VERSION, &cudaFuncAttributes::ptxVersion},
    {CU_FUNC_ATTRIBUTE_BINARY_VERSION, &cudaFuncAttributes::binaryVersion},
    {CU_FUNC_ATTRIBUTE_CACHE_MODE_CA, &cudaFuncAttributes::cacheModeCA},
    {CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, &cudaFuncAttributes::maxDynamicSharedSizeBytes},
    {CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, &cudaFuncAttributes::preferredShmemCarveout},
};
constexpr SizeField kSizes[] = {
    {CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, &cudaFuncAttributes::sharedSizeBytes},
    {CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES, &cudaFuncAttributes::constSizeBytes},
    {CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, &cudaFuncAttributes::localSizeBytes},
};

}  // namespace

// The <<<>>> syntax pushes a configuration, evaluates the arguments, and the kernel's host function pops it.
FAKE_CUDART_EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_memory, void* stream) {
  Configurations().push_back({grid, block, shared_memory, static_cast<cudaStream_t>(stream)});
  return 0;
}

FAKE_CUDART_EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_memory,
                                                          void* stream) {
  if (Configurations().empty()) return Remember(cudaErrorMissingConfiguration);
  const LaunchConfiguration configuration = Configurations().back();
  Configurations().pop_back();
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_memory = configuration.shared_memory;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

FAKE_CUDART_EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return WithDriver([&](const Driver& driver) { return FindKernel(driver, function, kernel); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return __cudaGetKernel(kernel, function);
}

FAKE_CUDART_EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (attributes == nullptr) return Remember(cudaErrorInvalidValue);
  *attributes = {};
  return WithKernel(function, [&](const Driver& driver, CUkernel kernel, int device) {
    for (const AttributeField& field : kFields) {
      const CUresult result = driver.KernelGetAttribute(&(attributes->*field.field), field.attribute, kernel, device);
      if (result != CUDA_SUCCESS) return result;
    }
    for (const SizeField& field : kSizes) {
      int value = 0;
      if (const CUresult result = driver.KernelGetAttribute(&value, field.attribute, kernel, device)) return result;
      attributes->*field.field = static_cast<size_t>(value);
    }
    return CUDA_SUCCESS;
  });
}

// The numbers of cudaFuncAttribute that can be set are those of the driver.
FAKE_CUDART_EXPORT cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return WithKernel(function, [&](const Driver& driver, CUkernel kernel, int device) {
    return driver.KernelSetAttribute(static_cast<CUfunction_attribute>(attribute), value, kernel, device);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaFuncSetCacheConfig(const void* function, cudaFuncCache config) {
  return WithKernel(function, [&](const Driver& driver, CUkernel kernel, int device) {
    return driver.KernelSetCacheConfig(kernel, static_cast<CUfunc_cache>(config), device);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                                      int block_size,
                                                                                      size_t shared_memory,
                                                                                      unsigned flags) {
  return WithKernel(function, [&](const Driver& driver, CUkernel kernel, int) {
    return driver.OccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, reinterpret_cast<CUfunction>(kernel),
                                                                     block_size, shared_memory, flags);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                                             int block_size, size_t shared_memory) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size, shared_memory, 0);
}
