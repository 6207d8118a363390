// cudaGetDeviceProperties: the driver's attributes, field by field.
#include <cstring>

#include "state.h"

using namespace fake_cudart;

namespace {

template <typename Field>
struct PropertyOf {
  cudaDeviceAttr attribute;
  Field cudaDeviceProp::*field;
};

constexpr PropertyOf<int> kNumbers[] = {
    {cudaDevAttrMaxRegistersPerBlock, &cudaDeviceProp::regsPerBlock},
    {cudaDevAttrWarpSize, &cudaDeviceProp::warpSize},
    {cudaDevAttrMaxThreadsPerBlock, &cudaDeviceProp::maxThreadsPerBlock},
    {cudaDevAttrComputeCapabilityMajor, &cudaDeviceProp::major},
    {cudaDevAttrComputeCapabilityMinor, &cudaDeviceProp::minor},
    {cudaDevAttrMultiProcessorCount, &cudaDeviceProp::multiProcessorCount},
    {cudaDevAttrIntegrated, &cudaDeviceProp::integrated},
    {cudaDevAttrCanMapHostMemory, &cudaDeviceProp::canMapHostMemory},
    {cudaDevAttrMaxTexture1DWidth, &cudaDeviceProp::maxTexture1D},
    {cudaDevAttrMaxTexture1DMipmappedWidth, &cudaDeviceProp::maxTexture1DMipmap},
    {cudaDevAttrMaxTextureCubemapWidth, &cudaDeviceProp::maxTextureCubemap},
    {cudaDevAttrMaxSurface1DWidth, &cudaDeviceProp::maxSurface1D},
    {cudaDevAttrMaxSurfaceCubemapWidth, &cudaDeviceProp::maxSurfaceCubemap},
    {cudaDevAttrConcurrentKernels, &cudaDeviceProp::concurrentKernels},
    {cudaDevAttrEccEnabled, &cudaDeviceProp::ECCEnabled},
    {cudaDevAttrPciBusId, &cudaDeviceProp::pciBusID},
    {cudaDevAttrPciDeviceId, &cudaDeviceProp::pciDeviceID},
    {cudaDevAttrPciDomainId, &cudaDeviceProp::pciDomainID},
    {cudaDevAttrTccDriver, &cudaDeviceProp::tccDriver},
    {cudaDevAttrAsyncEngineCount, &cudaDeviceProp::asyncEngineCount},
    {cudaDevAttrUnifiedAddressing, &cudaDeviceProp::unifiedAddressing},
    {cudaDevAttrGlobalMemoryBusWidth, &cudaDeviceProp::memoryBusWidth},
    {cudaDevAttrL2CacheSize, &cudaDeviceProp::l2CacheSize},
    {cudaDevAttrMaxPersistingL2CacheSize, &cudaDeviceProp::persistingL2CacheMaxSize},
    {cudaDevAttrMaxThreadsPerMultiProcessor, &cudaDeviceProp::maxThreadsPerMultiProcessor},
    {cudaDevAttrStreamPrioritiesSupported, &cudaDeviceProp::streamPrioritiesSupported},
    {cudaDevAttrGlobalL1CacheSupported, &cudaDeviceProp::globalL1CacheSupported},
    {cudaDevAttrLocalL1CacheSupported, &cudaDeviceProp::localL1CacheSupported},
    {cudaDevAttrMaxRegistersPerMultiprocessor, &cudaDeviceProp::regsPerMultiprocessor},
    {cudaDevAttrManagedMemory, &cudaDeviceProp::managedMemory},
    {cudaDevAttrIsMultiGpuBoard, &cudaDeviceProp::isMultiGpuBoard},
    {cudaDevAttrMultiGpuBoardGroupID, &cudaDeviceProp::multiGpuBoardGroupID},
    {cudaDevAttrHostNativeAtomicSupported, &cudaDeviceProp::hostNativeAtomicSupported},
    {cudaDevAttrPageableMemoryAccess, &cudaDeviceProp::pageableMemoryAccess},
    {cudaDevAttrConcurrentManagedAccess, &cudaDeviceProp::concurrentManagedAccess},
    {cudaDevAttrComputePreemptionSupported, &cudaDeviceProp::computePreemptionSupported},
    {cudaDevAttrCanUseHostPointerForRegisteredMem, &cudaDeviceProp::canUseHostPointerForRegisteredMem},
    {cudaDevAttrCooperativeLaunch, &cudaDeviceProp::cooperativeLaunch},
    {cudaDevAttrPageableMemoryAccessUsesHostPageTables, &cudaDeviceProp::pageableMemoryAccessUsesHostPageTables},
    {cudaDevAttrDirectManagedMemAccessFromHost, &cudaDeviceProp::directManagedMemAccessFromHost},
    {cudaDevAttrMaxBlocksPerMultiprocessor, &cudaDeviceProp::maxBlocksPerMultiProcessor},
    {cudaDevAttrMaxAccessPolicyWindowSize, &cudaDeviceProp::accessPolicyMaxWindowSize},
    {cudaDevAttrHostRegisterSupported, &cudaDeviceProp::hostRegisterSupported},
    {cudaDevAttrSparseCudaArraySupported, &cudaDeviceProp::sparseCudaArraySupported},
    {cudaDevAttrHostRegisterReadOnlySupported, &cudaDeviceProp::hostRegisterReadOnlySupported},
    {cudaDevAttrTimelineSemaphoreInteropSupported, &cudaDeviceProp::timelineSemaphoreInteropSupported},
    {cudaDevAttrMemoryPoolsSupported, &cudaDeviceProp::memoryPoolsSupported},
    {cudaDevAttrGPUDirectRDMASupported, &cudaDeviceProp::gpuDirectRDMASupported},
    {cudaDevAttrGPUDirectRDMAWritesOrdering, &cudaDeviceProp::gpuDirectRDMAWritesOrdering},
    {cudaDevAttrDeferredMappingCudaArraySupported, &cudaDeviceProp::deferredMappingCudaArraySupported},
    {cudaDevAttrIpcEventSupport, &cudaDeviceProp::ipcEventSupported},
    {cudaDevAttrClusterLaunch, &cudaDeviceProp::clusterLaunch},
    {cudaDevAttrNumaConfig, &cudaDeviceProp::deviceNumaConfig},
    {cudaDevAttrNumaId, &cudaDeviceProp::deviceNumaId},
    {cudaDevAttrMpsEnabled, &cudaDeviceProp::mpsEnabled},
    {cudaDevAttrHostNumaId, &cudaDeviceProp::hostNumaId},
    {cudaDevAttrHostNumaMultinodeIpcSupported, &cudaDeviceProp::hostNumaMultinodeIpcSupported},
};

constexpr PropertyOf<size_t> kSizes[] = {
    {cudaDevAttrMaxSharedMemoryPerBlock, &cudaDeviceProp::sharedMemPerBlock},
    {cudaDevAttrMaxPitch, &cudaDeviceProp::memPitch},
    {cudaDevAttrTotalConstantMemory, &cudaDeviceProp::totalConstMem},
    {cudaDevAttrTextureAlignment, &cudaDeviceProp::textureAlignment},
    {cudaDevAttrTexturePitchAlignment, &cudaDeviceProp::texturePitchAlignment},
    {cudaDevAttrSurfaceAlignment, &cudaDeviceProp::surfaceAlignment},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &cudaDeviceProp::sharedMemPerMultiprocessor},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, &cudaDeviceProp::sharedMemPerBlockOptin},
    {cudaDevAttrReservedSharedMemoryPerBlock, &cudaDeviceProp::reservedSharedMemPerBlock},
};

constexpr PropertyOf<unsigned> kMasks[] = {
    {cudaDevAttrGPUDirectRDMAFlushWritesOptions, &cudaDeviceProp::gpuDirectRDMAFlushWritesOptions},
    {cudaDevAttrMemoryPoolSupportedHandleTypes, &cudaDeviceProp::memoryPoolSupportedHandleTypes},
    {cudaDevAttrGpuPciDeviceId, &cudaDeviceProp::gpuPciDeviceID},
    {cudaDevAttrGpuPciSubsystemId, &cudaDeviceProp::gpuPciSubsystemID},
};

class Filler {
 public:
  Filler(const Driver& driver, int device) : driver_(driver), device_(device) {}

  // An attribute that the driver does not know leaves its field 0.
  int Attribute(int attribute) const {
    int value = 0;
    const CUresult result = driver_.DeviceGetAttribute(&value, static_cast<CUdevice_attribute>(attribute), device_);
    return result == CUDA_SUCCESS ? value : 0;
  }

  template <typename Field, size_t kCount>
  void Fill(cudaDeviceProp* properties, const PropertyOf<Field> (&fields)[kCount]) const {
    for (const PropertyOf<Field>& field : fields)
      properties->*field.field = static_cast<Field>(Attribute(field.attribute));
  }

  // Consecutive attributes into an array.
  template <size_t kCount>
  void FillArray(int (&array)[kCount], cudaDeviceAttr first) const {
    for (size_t i = 0; i < kCount; ++i) array[i] = Attribute(first + static_cast<int>(i));
  }

 private:
  const Driver& driver_;
  int device_;
};

void FillArrays(const Filler& filler, cudaDeviceProp* properties) {
  filler.FillArray(properties->maxThreadsDim, cudaDevAttrMaxBlockDimX);
  filler.FillArray(properties->maxGridSize, cudaDevAttrMaxGridDimX);
  filler.FillArray(properties->maxTexture2D, cudaDevAttrMaxTexture2DWidth);
  filler.FillArray(properties->maxTexture2DMipmap, cudaDevAttrMaxTexture2DMipmappedWidth);
  filler.FillArray(properties->maxTexture2DLinear, cudaDevAttrMaxTexture2DLinearWidth);
  filler.FillArray(properties->maxTexture2DGather, cudaDevAttrMaxTexture2DGatherWidth);
  filler.FillArray(properties->maxTexture3D, cudaDevAttrMaxTexture3DWidth);
  filler.FillArray(properties->maxTexture3DAlt, cudaDevAttrMaxTexture3DWidthAlt);
  filler.FillArray(properties->maxTexture1DLayered, cudaDevAttrMaxTexture1DLayeredWidth);
  filler.FillArray(properties->maxTexture2DLayered, cudaDevAttrMaxTexture2DLayeredWidth);
  filler.FillArray(properties->maxTextureCubemapLayered, cudaDevAttrMaxTextureCubemapLayeredWidth);
  filler.FillArray(properties->maxSurface2D, cudaDevAttrMaxSurface2DWidth);
  filler.FillArray(properties->maxSurface3D, cudaDevAttrMaxSurface3DWidth);
  filler.FillArray(properties->maxSurface1DLayered, cudaDevAttrMaxSurface1DLayeredWidth);
  filler.FillArray(properties->maxSurface2DLayered, cudaDevAttrMaxSurface2DLayeredWidth);
  filler.FillArray(properties->maxSurfaceCubemapLayered, cudaDevAttrMaxSurfaceCubemapLayeredWidth);
}

}  // namespace

FAKE_CUDART_EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return WithDriver([&](const Driver& driver) {
    if (properties == nullptr) return cudaErrorInvalidValue;
    if (const cudaError_t error = CheckDevice(driver, device)) return error;
    std::memset(properties, 0, sizeof *properties);
    if (const CUresult result = driver.DeviceGetName(properties->name, sizeof properties->name, device))
      return FromDriver(result);
    if (const CUresult result = driver.DeviceGetUuid(&properties->uuid, device)) return FromDriver(result);
    if (const CUresult result = driver.DeviceTotalMem(&properties->totalGlobalMem, device)) return FromDriver(result);
    const Filler filler(driver, device);
    filler.Fill(properties, kNumbers);
    filler.Fill(properties, kSizes);
    filler.Fill(properties, kMasks);
    FillArrays(filler, properties);
    properties->unifiedFunctionPointers = filler.Attribute(CU_DEVICE_ATTRIBUTE_UNIFIED_FUNCTION_POINTERS);
    return cudaSuccess;
  });
}
