// Our own words for the driver API against NVIDIA's: types, constants, and the signature of every function.
#include <type_traits>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <gtest/gtest.h>

#include "driver_api.h"

namespace gpuledger::cuda {
namespace {

// Two parameter types are one to the ABI if both are pointers, or integers or enumerations of one size and signedness.
template <class Ours, class Theirs>
constexpr bool Same() {
  if constexpr (std::is_pointer_v<Ours> || std::is_pointer_v<Theirs>) {
    return std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>;
  } else if constexpr (std::is_enum_v<Theirs>) {
    return sizeof(Ours) == sizeof(Theirs);
  } else {
    return sizeof(Ours) == sizeof(Theirs) && std::is_signed_v<Ours> == std::is_signed_v<Theirs>;
  }
}
template <class Ours, class Theirs>
struct SameSignature : std::false_type {};
template <class... Ours, class... Theirs>
struct SameSignature<Result (*)(Ours...), CUresult (*)(Theirs...)>
    : std::bool_constant<sizeof...(Ours) == sizeof...(Theirs)> {
  static constexpr bool parameters = (Same<Ours, Theirs>() && ...);
};

#define GPULEDGER_CHECK_FUNCTION(name, version, parameters_)                                  \
  static_assert(SameSignature<Result(*) parameters_, PFN_##name##_v##version>::value, #name); \
  static_assert(SameSignature<Result(*) parameters_, PFN_##name##_v##version>::parameters, #name);
GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_CHECK_FUNCTION)
GPULEDGER_CUDA_OPTIONAL_FUNCTIONS(GPULEDGER_CHECK_FUNCTION)

#define GPULEDGER_CHECK_VALUE(ours, theirs) \
  static_assert(static_cast<long long>(ours) == static_cast<long long>(theirs))
GPULEDGER_CHECK_VALUE(kSuccess, CUDA_SUCCESS);
GPULEDGER_CHECK_VALUE(kInvalidValue, CUDA_ERROR_INVALID_VALUE);
GPULEDGER_CHECK_VALUE(kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
GPULEDGER_CHECK_VALUE(kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
GPULEDGER_CHECK_VALUE(kDeinitialized, CUDA_ERROR_DEINITIALIZED);
GPULEDGER_CHECK_VALUE(kStubLibrary, CUDA_ERROR_STUB_LIBRARY);
GPULEDGER_CHECK_VALUE(kDeviceUnavailable, CUDA_ERROR_DEVICE_UNAVAILABLE);
GPULEDGER_CHECK_VALUE(kNoDevice, CUDA_ERROR_NO_DEVICE);
GPULEDGER_CHECK_VALUE(kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
GPULEDGER_CHECK_VALUE(kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
GPULEDGER_CHECK_VALUE(kEccUncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE);
GPULEDGER_CHECK_VALUE(kOperatingSystem, CUDA_ERROR_OPERATING_SYSTEM);
GPULEDGER_CHECK_VALUE(kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
GPULEDGER_CHECK_VALUE(kNotReady, CUDA_ERROR_NOT_READY);
GPULEDGER_CHECK_VALUE(kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
GPULEDGER_CHECK_VALUE(kPeerAccessAlreadyEnabled, CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
GPULEDGER_CHECK_VALUE(kContextIsDestroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED);
GPULEDGER_CHECK_VALUE(kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED);
GPULEDGER_CHECK_VALUE(kNotPermitted, CUDA_ERROR_NOT_PERMITTED);
GPULEDGER_CHECK_VALUE(kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
GPULEDGER_CHECK_VALUE(kSystemNotReady, CUDA_ERROR_SYSTEM_NOT_READY);
GPULEDGER_CHECK_VALUE(kSystemDriverMismatch, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
GPULEDGER_CHECK_VALUE(kCompatNotSupportedOnDevice, CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE);
GPULEDGER_CHECK_VALUE(kStreamCaptureUnsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
GPULEDGER_CHECK_VALUE(kStreamCaptureImplicit, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
GPULEDGER_CHECK_VALUE(kUnknown, CUDA_ERROR_UNKNOWN);
GPULEDGER_CHECK_VALUE(kVirtualMemoryManagementSupported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
GPULEDGER_CHECK_VALUE(kPosixFileDescriptorSupported, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
GPULEDGER_CHECK_VALUE(kGpuDirectRdmaWithVmmSupported, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);
GPULEDGER_CHECK_VALUE(kCaptureNone, CU_STREAM_CAPTURE_STATUS_NONE);
GPULEDGER_CHECK_VALUE(kCaptureActive, CU_STREAM_CAPTURE_STATUS_ACTIVE);
GPULEDGER_CHECK_VALUE(kCaptureInvalidated, CU_STREAM_CAPTURE_STATUS_INVALIDATED);
GPULEDGER_CHECK_VALUE(kCaptureModeGlobal, CU_STREAM_CAPTURE_MODE_GLOBAL);
GPULEDGER_CHECK_VALUE(kCaptureModeThreadLocal, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
GPULEDGER_CHECK_VALUE(kCaptureModeRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
GPULEDGER_CHECK_VALUE(kAllocationTypePinned, CU_MEM_ALLOCATION_TYPE_PINNED);
GPULEDGER_CHECK_VALUE(kLocationTypeDevice, CU_MEM_LOCATION_TYPE_DEVICE);
GPULEDGER_CHECK_VALUE(kHandleTypeNone, CU_MEM_HANDLE_TYPE_NONE);
GPULEDGER_CHECK_VALUE(kHandleTypePosixFileDescriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
GPULEDGER_CHECK_VALUE(kAccessReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
GPULEDGER_CHECK_VALUE(kGranularityMinimum, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
GPULEDGER_CHECK_VALUE(kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
GPULEDGER_CHECK_VALUE(kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
GPULEDGER_CHECK_VALUE(kProcAddressLegacyStream, CU_GET_PROC_ADDRESS_LEGACY_STREAM);

#define GPULEDGER_CHECK_MEMBER(ours, our_member, theirs, their_member)         \
  static_assert(offsetof(ours, our_member) == offsetof(theirs, their_member)); \
  static_assert(sizeof(ours::our_member) == sizeof(theirs::their_member))
static_assert(sizeof(Location) == sizeof(CUmemLocation));
GPULEDGER_CHECK_MEMBER(Location, type, CUmemLocation, type);
GPULEDGER_CHECK_MEMBER(Location, id, CUmemLocation, id);
static_assert(sizeof(AllocationProperties) == sizeof(CUmemAllocationProp));
GPULEDGER_CHECK_MEMBER(AllocationProperties, type, CUmemAllocationProp, type);
GPULEDGER_CHECK_MEMBER(AllocationProperties, handle_types, CUmemAllocationProp, requestedHandleTypes);
GPULEDGER_CHECK_MEMBER(AllocationProperties, location, CUmemAllocationProp, location);
GPULEDGER_CHECK_MEMBER(AllocationProperties, win32_meta_data, CUmemAllocationProp, win32HandleMetaData);
GPULEDGER_CHECK_MEMBER(AllocationProperties, flags, CUmemAllocationProp, allocFlags);
static_assert(offsetof(AllocationProperties, flags.gpu_direct_rdma_capable) ==
              offsetof(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable));
static_assert(sizeof(AccessDescription) == sizeof(CUmemAccessDesc));
GPULEDGER_CHECK_MEMBER(AccessDescription, location, CUmemAccessDesc, location);
GPULEDGER_CHECK_MEMBER(AccessDescription, flags, CUmemAccessDesc, flags);

// It has compiled: what it asserts holds. The comparison itself is tried on a difference.
TEST(CudaDriverApi, IsThatOfTheHeaders) {
  EXPECT_FALSE((Same<int, unsigned>()));
  EXPECT_FALSE((Same<uint64_t, int>()));
  EXPECT_FALSE((Same<uint64_t, void*>()));
  EXPECT_TRUE((Same<Attribute, CUdevice_attribute>()));
}

}  // namespace
}  // namespace gpuledger::cuda
