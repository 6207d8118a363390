// allocator/cuda/driver_api.h - the part of NVIDIA's driver API that the upstream uses, in our own words.
//
// Written down here and not included from cuda.h, so that the library is the same wherever it is built, with or without
// a toolkit. The ABI it describes is fixed: each function is asked for by the version that brought its form
// (driver.cc). tests/cuda/driver_api_test.cc compares every type and constant with cuda.h where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace gpuledger::cuda {

using Device = int;
using Context = struct ContextTag*;
using Event = struct EventTag*;
using StreamHandle = CUstream_st*;
using Address = unsigned long long;
using Memory = unsigned long long;  // CUmemGenericAllocationHandle

enum Result : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kStubLibrary = 34,
  kDeviceUnavailable = 46,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kEccUncorrectable = 214,
  kOperatingSystem = 304,
  kInvalidHandle = 400,
  kNotReady = 600,
  kIllegalAddress = 700,
  kPeerAccessAlreadyEnabled = 704,
  kContextIsDestroyed = 709,
  kLaunchFailed = 719,
  kNotPermitted = 800,
  kNotSupported = 801,
  kSystemNotReady = 802,
  kSystemDriverMismatch = 803,
  kCompatNotSupportedOnDevice = 804,
  kStreamCaptureUnsupported = 900,
  kStreamCaptureImplicit = 906,
  kUnknown = 999,
};

enum Attribute : int {
  kVirtualMemoryManagementSupported = 102,
  kPosixFileDescriptorSupported = 103,
  kGpuDirectRdmaWithVmmSupported = 110,
};

enum CaptureStatus : int { kCaptureNone = 0, kCaptureActive = 1, kCaptureInvalidated = 2 };
enum CaptureMode : int { kCaptureModeGlobal = 0, kCaptureModeThreadLocal = 1, kCaptureModeRelaxed = 2 };

inline constexpr int kAllocationTypePinned = 1;
inline constexpr int kLocationTypeDevice = 1;
inline constexpr int kHandleTypeNone = 0;
inline constexpr int kHandleTypePosixFileDescriptor = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kGranularityMinimum = 0;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr uint64_t kProcAddressLegacyStream = 1;

struct Location {
  int type;
  int id;
};

struct AllocationProperties {  // CUmemAllocationProp
  int type;
  int handle_types;
  Location location;
  void* win32_meta_data;
  struct {
    unsigned char compression_type;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};

struct AccessDescription {  // CUmemAccessDesc
  Location location;
  int flags;
};

// X(name, first CUDA version of this form, parameters): every function that is called.
#define GPULEDGER_CUDA_FUNCTIONS(X)                                                                                  \
  X(cuInit, 2000, (unsigned flags))                                                                                  \
  X(cuDriverGetVersion, 2020, (int* version))                                                                        \
  X(cuGetErrorName, 6000, (Result error, const char** name))                                                         \
  X(cuDeviceGetCount, 2000, (int* count))                                                                            \
  X(cuDeviceGet, 2000, (Device * device, int ordinal))                                                               \
  X(cuDeviceGetAttribute, 2000, (int* value, Attribute attribute, Device device))                                    \
  X(cuDeviceTotalMem, 3020, (size_t * bytes, Device device))                                                         \
  X(cuDeviceCanAccessPeer, 4000, (int* can, Device device, Device peer))                                             \
  X(cuDevicePrimaryCtxRetain, 7000, (Context * context, Device device))                                              \
  X(cuDevicePrimaryCtxRelease, 11000, (Device device))                                                               \
  X(cuCtxGetCurrent, 4000, (Context * context))                                                                      \
  X(cuCtxPushCurrent, 4000, (Context context))                                                                       \
  X(cuCtxPopCurrent, 4000, (Context * context))                                                                      \
  X(cuCtxSynchronize, 2000, ())                                                                                      \
  X(cuCtxEnablePeerAccess, 4000, (Context peer, unsigned flags))                                                     \
  X(cuThreadExchangeStreamCaptureMode, 10010, (CaptureMode * mode))                                                  \
  X(cuMemGetInfo, 3020, (size_t * free, size_t * total))                                                             \
  X(cuMemAlloc, 3020, (Address * address, size_t size))                                                              \
  X(cuMemFree, 3020, (Address address))                                                                              \
  X(cuMemGetAllocationGranularity, 10020, (size_t * granularity, const AllocationProperties* properties, int which)) \
  X(cuMemAddressReserve, 10020, (Address * address, size_t size, size_t alignment, Address hint, uint64_t flags))    \
  X(cuMemAddressFree, 10020, (Address address, size_t size))                                                         \
  X(cuMemCreate, 10020, (Memory * memory, size_t size, const AllocationProperties* properties, uint64_t flags))      \
  X(cuMemRelease, 10020, (Memory memory))                                                                            \
  X(cuMemMap, 10020, (Address address, size_t size, size_t offset, Memory memory, uint64_t flags))                   \
  X(cuMemUnmap, 10020, (Address address, size_t size))                                                               \
  X(cuMemSetAccess, 10020, (Address address, size_t size, const AccessDescription* description, size_t count))       \
  X(cuMemExportToShareableHandle, 10020, (void* shareable, Memory memory, int type, uint64_t flags))                 \
  X(cuMemImportFromShareableHandle, 10020, (Memory * memory, void* shareable, int type))                             \
  X(cuMemsetD32Async, 3020, (Address address, unsigned word, size_t count, StreamHandle stream))                     \
  X(cuMemcpyDtoHAsync, 3020, (void* host, Address address, size_t size, StreamHandle stream))                        \
  X(cuStreamIsCapturing, 10000, (StreamHandle stream, CaptureStatus * status))                                       \
  X(cuStreamCreate, 2000, (StreamHandle * stream, unsigned flags))                                                   \
  X(cuStreamDestroy, 4000, (StreamHandle stream))                                                                    \
  X(cuStreamSynchronize, 2000, (StreamHandle stream))                                                                \
  X(cuStreamWaitEvent, 3020, (StreamHandle stream, Event event, unsigned flags))                                     \
  X(cuEventCreate, 2000, (Event * event, unsigned flags))                                                            \
  X(cuEventRecord, 2000, (Event event, StreamHandle stream))                                                         \
  X(cuEventQuery, 2000, (Event event))                                                                               \
  X(cuEventSynchronize, 2000, (Event event))                                                                         \
  X(cuEventDestroy, 4000, (Event event))

// What a driver may lack: null then.
#define GPULEDGER_CUDA_OPTIONAL_FUNCTIONS(X) X(cuStreamGetId, 12000, (StreamHandle stream, unsigned long long* id))

}  // namespace gpuledger::cuda
