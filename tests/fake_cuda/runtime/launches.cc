// Kernel launches; compiled twice (stream_calls.h). The driver takes a kernel wherever it takes a function.
#include "stream_calls.h"
#include "symbols.h"

using namespace fake_cudart;

#ifdef CUDA_API_PER_THREAD_DEFAULT_STREAM
#define __cudaLaunchKernel __cudaLaunchKernel_ptsz
// The header has an inline function of this name here, which calls the exported one.
#undef cudaLaunchKernel
#undef cudaLaunchKernelExC
#define cudaLaunchKernel cudaLaunchKernel_ptsz
#define cudaLaunchKernelExC cudaLaunchKernelExC_ptsz
#endif

namespace {

template <typename Launch>
cudaError_t WithFunction(const void* function, Launch launch) {
  return WithContext([&](const Driver& driver) {
    CUkernel kernel = nullptr;
    if (const cudaError_t error = FindKernel(driver, function, &kernel)) return error;
    return launch(reinterpret_cast<CUfunction>(kernel));
  });
}

cudaError_t Launch(CUfunction function, dim3 grid, dim3 block, void** arguments, size_t shared_memory,
                   cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.LaunchKernel(function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                              static_cast<unsigned>(shared_memory), stream, arguments, nullptr);
  });
}

}  // namespace

FAKE_CUDART_EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                                  size_t shared_memory, cudaStream_t stream) {
  if (kernel == nullptr) return Remember(cudaErrorInvalidDeviceFunction);
  return Launch(reinterpret_cast<CUfunction>(kernel), grid, block, arguments, shared_memory, stream);
}

FAKE_CUDART_EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                                size_t shared_memory, cudaStream_t stream) {
  return WithFunction(function,
                      [&](CUfunction found) { return Launch(found, grid, block, arguments, shared_memory, stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block,
                                                           void** arguments, size_t shared_memory,
                                                           cudaStream_t stream) {
  return WithFunction(function, [&](CUfunction found) {
    return WithStreams([&](const StreamCalls& calls) {
      return calls.LaunchCooperativeKernel(found, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                           static_cast<unsigned>(shared_memory), stream, arguments);
    });
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                                   void** arguments) {
  static_assert(sizeof(cudaLaunchAttribute) == sizeof(CUlaunchAttribute));
  if (config == nullptr) return Remember(cudaErrorInvalidValue);
  return WithFunction(function, [&](CUfunction found) {
    CUlaunchConfig launch = {};
    launch.gridDimX = config->gridDim.x;
    launch.gridDimY = config->gridDim.y;
    launch.gridDimZ = config->gridDim.z;
    launch.blockDimX = config->blockDim.x;
    launch.blockDimY = config->blockDim.y;
    launch.blockDimZ = config->blockDim.z;
    launch.sharedMemBytes = static_cast<unsigned>(config->dynamicSmemBytes);
    launch.hStream = config->stream;
    launch.attrs = reinterpret_cast<CUlaunchAttribute*>(config->attrs);
    launch.numAttrs = config->numAttrs;
    return WithStreams(
        [&](const StreamCalls& calls) { return calls.LaunchKernelEx(&launch, found, arguments, nullptr); });
  });
}
