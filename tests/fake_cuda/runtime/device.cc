// Devices: which there are, which one is used, what they can do.
#include "symbols.h"

using namespace fake_cudart;

FAKE_CUDART_EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return Remember(cudaErrorInvalidValue);
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// 0 without a driver, and no error.
FAKE_CUDART_EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  if (version == nullptr) return Remember(cudaErrorInvalidValue);
  *version = 0;
  const Driver* driver = LoadDriver();
  return driver == nullptr ? cudaSuccess : Remember(FromDriver(driver->DriverGetVersion(version)));
}

FAKE_CUDART_EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  if (count == nullptr) return Remember(cudaErrorInvalidValue);
  *count = 0;
  return WithDriver([&](const Driver& driver) {
    const CUresult result = driver.DeviceGetCount(count);
    return result == CUDA_SUCCESS && *count == 0 ? cudaErrorNoDevice : FromDriver(result);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGetDevice(int* device) {
  return WithDriver([&](const Driver& driver) { return CurrentDevice(driver, device); });
}

FAKE_CUDART_EXPORT cudaError_t cudaSetDevice(int device) {
  return WithDriver([&](const Driver& driver) { return SetDevice(driver, device); });
}

FAKE_CUDART_EXPORT cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  return WithDriver([&](const Driver& driver) {
    CUcontext context = nullptr;
    return PrimaryContextOf(driver, device, &context);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceSynchronize() {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.CtxSynchronize()); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceReset() {
  return WithDriver([&](const Driver& driver) {
    int device = 0;
    if (const cudaError_t error = CurrentDevice(driver, &device)) return error;
    ForgetSymbolMemory(device);
    return ResetDevice(driver);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return WithDriver([&](const Driver& driver) {
    if (const cudaError_t error = CheckDevice(driver, device)) return error;
    return FromDriver(driver.DeviceGetAttribute(value, static_cast<CUdevice_attribute>(attribute), device));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return WithDriver([&](const Driver& driver) { return FromDriver(driver.DeviceGetPCIBusId(id, length, device)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* id) {
  return WithDriver([&](const Driver& driver) { return FromDriver(driver.DeviceGetByPCIBusId(device, id)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.CtxGetStreamPriorityRange(least, greatest)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit limit) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.CtxGetLimit(value, static_cast<CUlimit>(limit))); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceSetLimit(cudaLimit limit, size_t value) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.CtxSetLimit(static_cast<CUlimit>(limit), value)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return WithDriver([&](const Driver& driver) {
    if (const cudaError_t error = CheckDevice(driver, device)) return error;
    if (const cudaError_t error = CheckDevice(driver, peer)) return error;
    return FromDriver(driver.DeviceCanAccessPeer(can, device, peer));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr attribute, int device,
                                                         int peer) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(driver.DeviceGetP2PAttribute(value, static_cast<CUdevice_P2PAttribute>(attribute), device, peer));
  });
}

namespace {

// `body` takes the driver and the primary context of `peer`.
template <typename Body>
cudaError_t WithPeer(int peer, Body body) {
  return WithContext([&](const Driver& driver) {
    CUcontext context = nullptr;
    if (const cudaError_t error = PrimaryContextOf(driver, peer, &context)) return error;
    return FromDriver(body(driver, context));
  });
}

}  // namespace

FAKE_CUDART_EXPORT cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  return WithPeer(peer,
                  [&](const Driver& driver, CUcontext context) { return driver.CtxEnablePeerAccess(context, flags); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  return WithPeer(peer, [&](const Driver& driver, CUcontext context) { return driver.CtxDisablePeerAccess(context); });
}

// Copies between devices have no form for the per-thread default stream.
FAKE_CUDART_EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device,
                                                   size_t bytes, cudaStream_t stream) {
  return WithPeer(to_device, [&](const Driver& driver, CUcontext to_context) {
    CUcontext from_context = nullptr;
    if (const cudaError_t error = PrimaryContextOf(driver, from_device, &from_context))
      return static_cast<CUresult>(error);
    return driver.legacy.MemcpyPeerAsync(reinterpret_cast<CUdeviceptr>(to), to_context,
                                         reinterpret_cast<CUdeviceptr>(from), from_context, bytes, stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device,
                                              size_t bytes) {
  return WithPeer(to_device, [&](const Driver& driver, CUcontext to_context) {
    CUcontext from_context = nullptr;
    if (const cudaError_t error = PrimaryContextOf(driver, from_device, &from_context))
      return static_cast<CUresult>(error);
    return driver.legacy.MemcpyPeer(reinterpret_cast<CUdeviceptr>(to), to_context, reinterpret_cast<CUdeviceptr>(from),
                                    from_context, bytes);
  });
}

// There is nothing to profile; a profiler that is told to start or stop is none of this library's.
FAKE_CUDART_EXPORT cudaError_t cudaProfilerStart() {
  return WithContext([](const Driver&) { return cudaSuccess; });
}

FAKE_CUDART_EXPORT cudaError_t cudaProfilerStop() { return cudaProfilerStart(); }

// Driver functions for programs that have no link to the driver. What they answer later is no error of the runtime.
namespace {

cudaError_t EntryPoint(const char* name, void** function, unsigned version, unsigned long long flags,
                       cudaDriverEntryPointQueryResult* found, cuuint64_t default_stream) {
  return WithDriver([&](const Driver& driver) {
    if (name == nullptr || function == nullptr) return cudaErrorInvalidValue;
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    const cuuint64_t wanted = flags == cudaEnableDefault ? default_stream : flags;
    const CUresult result = driver.GetProcAddress(name, function, static_cast<int>(version), wanted, &status);
    if (found != nullptr) *found = static_cast<cudaDriverEntryPointQueryResult>(status);
    // Not to find a name is an answer, for those who can read it.
    return result == CUDA_ERROR_NOT_FOUND && found != nullptr ? cudaSuccess : FromDriver(result);
  });
}

}  // namespace

FAKE_CUDART_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                                                unsigned long long flags,
                                                                cudaDriverEntryPointQueryResult* found) {
  return EntryPoint(name, function, version, flags, found, CU_GET_PROC_ADDRESS_LEGACY_STREAM);
}

FAKE_CUDART_EXPORT cudaError_t cudaGetDriverEntryPointByVersion_ptsz(const char* name, void** function,
                                                                     unsigned version, unsigned long long flags,
                                                                     cudaDriverEntryPointQueryResult* found) {
  return EntryPoint(name, function, version, flags, found, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
}

FAKE_CUDART_EXPORT cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags,
                                                       cudaDriverEntryPointQueryResult* found) {
  return EntryPoint(name, function, CUDART_VERSION, flags, found, CU_GET_PROC_ADDRESS_LEGACY_STREAM);
}

FAKE_CUDART_EXPORT cudaError_t cudaGetDriverEntryPoint_ptsz(const char* name, void** function, unsigned long long flags,
                                                            cudaDriverEntryPointQueryResult* found) {
  return EntryPoint(name, function, CUDART_VERSION, flags, found, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
}
