// The driver below the runtime: every call that the runtime makes, resolved as NVIDIA's runtime resolves its own, that
// is dlopen("libcuda.so.1"), one dlsym of cuGetProcAddress_v2, and through that everything else, cuGetProcAddress
// included. So whatever stands between a program and its driver sees this runtime's calls too.
#ifndef GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_DRIVER_H_
#define GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_DRIVER_H_

#include <cuda.h>
#include <cudaTypedefs.h>

#include "driver_calls.h"

namespace fake_cudart {

#define FAKE_CUDART_MEMBER(name, version) PFN_cu##name##_v##version name = nullptr;
#define FAKE_CUDART_STREAM_MEMBER(name, version, per_thread_version, ending) PFN_cu##name##_v##version name = nullptr;

struct StreamCalls {
  FAKE_CUDART_STREAM_CALLS(FAKE_CUDART_STREAM_MEMBER)
};

struct Driver {
  FAKE_CUDART_DRIVER_CALLS(FAKE_CUDART_MEMBER)
  StreamCalls legacy;      // stream 0 is the default stream of the context
  StreamCalls per_thread;  // stream 0 is the default stream of the calling thread
  PFN_cuGetProcAddress_v12000 GetProcAddress = nullptr;
};

#undef FAKE_CUDART_MEMBER
#undef FAKE_CUDART_STREAM_MEMBER

// Null if there is no libcuda.so.1, or one without cuGetProcAddress. A call that the driver lacks is a function that
// answers CUDA_ERROR_NOT_SUPPORTED, never null. Does not call cuInit. Thread-safe; the first call loads.
const Driver* LoadDriver();

}  // namespace fake_cudart

#endif  // GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_DRIVER_H_
