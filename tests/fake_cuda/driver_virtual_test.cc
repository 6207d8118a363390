// Virtual memory management of the fake driver.
#include <unistd.h>

#include "driver_test.h"

namespace fake_cuda_test {
namespace {

class VirtualMemory : public Driver {
 protected:
  CUmemGenericAllocationHandle Create(size_t size, unsigned handle_types = 0) {
    CUmemGenericAllocationHandle handle = 0;
    const CUmemAllocationProp properties = OnDevice(0, handle_types);
    EXPECT_CU(CU(cuMemCreate)(&handle, size, &properties, 0));
    return handle;
  }
  CUdeviceptr Reserve(size_t size) {
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuMemAddressReserve)(&address, size, 0, 0, 0));
    return address;
  }
};

TEST_F(VirtualMemory, HasAGranularityOfTwoMebibytes) {
  size_t granularity = 0;
  const CUmemAllocationProp properties = OnDevice(0);
  EXPECT_CU(CU(cuMemGetAllocationGranularity)(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  EXPECT_EQ(kGranule, granularity);
  CUmemGenericAllocationHandle handle = 0;
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemCreate)(&handle, kMiB, &properties, 0));
}

TEST_F(VirtualMemory, MappedTwiceIsOneMemory) {
  const CUmemGenericAllocationHandle handle = Create(2 * kGranule);
  const CUdeviceptr range = Reserve(8 * kGranule);
  EXPECT_CU(CU(cuMemMap)(range, 2 * kGranule, 0, handle, 0));
  EXPECT_CU(CU(cuMemMap)(range + 4 * kGranule, 2 * kGranule, 0, handle, 0));
  Access(range, 2 * kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  Access(range + 4 * kGranule, 2 * kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  Host(range)[3] = 33;
  EXPECT_EQ(33, Host(range + 4 * kGranule)[3]);
  EXPECT_CU(CU(cuMemUnmap)(range, 2 * kGranule));
  EXPECT_EQ(33, Host(range + 4 * kGranule)[3]);
  EXPECT_CU(CU(cuMemUnmap)(range + 4 * kGranule, 2 * kGranule));
  EXPECT_CU(CU(cuMemAddressFree)(range, 8 * kGranule));
  EXPECT_CU(CU(cuMemRelease)(handle));
}

TEST_F(VirtualMemory, LivesUntilItIsReleasedAndMappedNowhere) {
  const size_t before = Free();
  const CUmemGenericAllocationHandle handle = Create(kGranule);
  const CUdeviceptr range = Reserve(kGranule);
  EXPECT_EQ(before - kGranule, Free());
  EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
  EXPECT_CU(CU(cuMemRelease)(handle));
  EXPECT_EQ(before - kGranule, Free());
  CUmemGenericAllocationHandle retained = 0;
  EXPECT_CU(CU(cuMemRetainAllocationHandle)(&retained, Host(range + 100)));
  EXPECT_EQ(handle, retained);
  EXPECT_CU(CU(cuMemUnmap)(range, kGranule));
  EXPECT_EQ(before - kGranule, Free());
  EXPECT_CU(CU(cuMemRelease)(retained));
  EXPECT_EQ(before, Free());
  EXPECT_CU(CU(cuMemAddressFree)(range, kGranule));
}

TEST_F(VirtualMemory, IsNotAccessibleBeforeAccessIsSet) {
  const CUmemGenericAllocationHandle handle = Create(kGranule);
  const CUdeviceptr range = Reserve(kGranule);
  EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
  const CUmemLocation here = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  unsigned long long flags = 7;
  EXPECT_CU(CU(cuMemGetAccess)(&flags, &here, range));
  EXPECT_EQ(CU_MEM_ACCESS_FLAGS_PROT_NONE, flags);
  EXPECT_MISUSE(Host(range)[0] = 1, "");
  EXPECT_MISUSE(CU(cuMemsetD8)(range, 1, 1), "is not memory that was allocated, mapped and made accessible");
  Access(range, kGranule, CU_MEM_ACCESS_FLAGS_PROT_READ);
  EXPECT_CU(CU(cuMemGetAccess)(&flags, &here, range));
  EXPECT_EQ(CU_MEM_ACCESS_FLAGS_PROT_READ, flags);
  EXPECT_EQ(0, Host(range)[0]);
  EXPECT_MISUSE(Host(range)[0] = 1, "");
  EXPECT_CU(CU(cuMemUnmap)(range, kGranule));
  EXPECT_MISUSE((void)*(volatile int*)Host(range), "");
  EXPECT_CU(CU(cuMemRelease)(handle));
  EXPECT_CU(CU(cuMemAddressFree)(range, kGranule));
}

TEST_F(VirtualMemory, GivesAccessAndUnmapsByWholeMappingsOnly) {
  const CUmemGenericAllocationHandle first = Create(2 * kGranule), second = Create(kGranule);
  const CUdeviceptr range = Reserve(4 * kGranule);
  EXPECT_CU(CU(cuMemMap)(range, 2 * kGranule, 0, first, 0));
  EXPECT_CU(CU(cuMemMap)(range + 2 * kGranule, kGranule, 0, second, 0));
  EXPECT_MISUSE(Access(range, kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE),
                "is not exactly what one or more cuMemMap");
  EXPECT_MISUSE(Access(range, 4 * kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE), "is not exactly what");
  EXPECT_MISUSE(CU(cuMemUnmap)(range + kGranule, kGranule), "is not exactly what");
  Access(range, 3 * kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);  // both at once
  EXPECT_CU(CU(cuMemsetD8)(range, 1, 3 * kGranule));
  EXPECT_CU(CU(cuMemUnmap)(range, 3 * kGranule));
  EXPECT_CU(CU(cuMemRelease)(first));
  EXPECT_CU(CU(cuMemRelease)(second));
  EXPECT_CU(CU(cuMemAddressFree)(range, 4 * kGranule));
}

TEST(Rights, AreThoseOfEachDevice) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_DEVICES", "2", 1);
    Start();
    CUmemGenericAllocationHandle handle = 0;
    CUdeviceptr range = 0;
    const CUmemAllocationProp properties = OnDevice(0);
    EXPECT_CU(CU(cuMemCreate)(&handle, kGranule, &properties, 0));
    EXPECT_CU(CU(cuMemAddressReserve)(&range, kGranule, 0, 0, 0));
    EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
    const auto may = [&](int device) {
      const CUmemLocation location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
      unsigned long long flags = 7;
      EXPECT_CU(CU(cuMemGetAccess)(&flags, &location, range));
      return flags;
    };
    Access(range, kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    EXPECT_EQ(CU_MEM_ACCESS_FLAGS_PROT_READWRITE, may(0));
    EXPECT_EQ(CU_MEM_ACCESS_FLAGS_PROT_NONE, may(1));
    const CUmemAccessDesc peer = {{CU_MEM_LOCATION_TYPE_DEVICE, 1}, CU_MEM_ACCESS_FLAGS_PROT_READ};
    EXPECT_CU(CU(cuMemSetAccess)(range, kGranule, &peer, 1));
    EXPECT_EQ(CU_MEM_ACCESS_FLAGS_PROT_READWRITE, may(0));
    EXPECT_EQ(CU_MEM_ACCESS_FLAGS_PROT_READ, may(1));
  });
}

TEST(Devices, ReachEachOtherUnlessTheEnvironmentSaysNo) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_DEVICES", "2", 1);
    setenv("FAKE_CUDA_PEERS", "0", 1);
    const CUcontext second = Start(1);
    Start(0);
    int can = 7;
    EXPECT_CU(CU(cuDeviceCanAccessPeer)(&can, 0, 1));
    EXPECT_EQ(0, can);
    EXPECT_EQ(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, CU(cuCtxEnablePeerAccess)(second, 0));
  });
}

TEST_F(VirtualMemory, InUseIsNotGivenBack) {
  const CUmemGenericAllocationHandle handle = Create(kGranule);
  const CUdeviceptr range = Reserve(2 * kGranule);
  EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
  EXPECT_MISUSE(CU(cuMemAddressFree)(range, 2 * kGranule), "memory is still mapped in the range");
  EXPECT_MISUSE(CU(cuMemAddressFree)(range, kGranule), "is not what a cuMemAddressReserve reserved");
  EXPECT_MISUSE(CU(cuMemMap)(range, kGranule, 0, handle, 0), "memory is already mapped");
  EXPECT_MISUSE(CU(cuMemFree)(range), "comes from cuMemMap and goes back with cuMemUnmap");
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemMap)(range + 2 * kGranule, kGranule, 0, handle, 0));
  EXPECT_CU(CU(cuMemUnmap)(range, kGranule));
  EXPECT_MISUSE(CU(cuMemUnmap)(range, kGranule), "is not exactly what");
  EXPECT_CU(CU(cuMemRelease)(handle));
  EXPECT_MISUSE(CU(cuMemRelease)(handle), "was released before");
  EXPECT_MISUSE(CU(cuMemMap)(range, kGranule, 0, handle, 0), "was released before");
  EXPECT_CU(CU(cuMemAddressFree)(range, 2 * kGranule));
}

TEST_F(VirtualMemory, RefusesHandleTypesThatItDoesNotHave) {
  CUmemGenericAllocationHandle handle = 0;
  for (const unsigned type : {CU_MEM_HANDLE_TYPE_FABRIC, CU_MEM_HANDLE_TYPE_WIN32, CU_MEM_HANDLE_TYPE_WIN32_KMT}) {
    const CUmemAllocationProp properties = OnDevice(0, type);
    EXPECT_EQ(CUDA_ERROR_NOT_SUPPORTED, CU(cuMemCreate)(&handle, kGranule, &properties, 0)) << type;
  }
  const CUmemAllocationProp elsewhere = OnDevice(5);
  EXPECT_EQ(CUDA_ERROR_INVALID_DEVICE, CU(cuMemCreate)(&handle, kGranule, &elsewhere, 0));
}

TEST_F(VirtualMemory, ExportedAndImportedInOneProcessIsTheSame) {
  const CUmemGenericAllocationHandle handle = Create(kGranule, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  int fd = -1;
  ASSERT_CU(CU(cuMemExportToShareableHandle)(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  CUmemGenericAllocationHandle imported = 0;
  ASSERT_CU(CU(cuMemImportFromShareableHandle)(&imported, reinterpret_cast<void*>(intptr_t{fd}),
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
  close(fd);
  const CUdeviceptr range = Reserve(2 * kGranule);
  EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
  EXPECT_CU(CU(cuMemMap)(range + kGranule, kGranule, 0, imported, 0));
  Access(range, 2 * kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  Host(range)[9] = 99;
  EXPECT_EQ(99, Host(range + kGranule)[9]);
  EXPECT_CU(CU(cuMemUnmap)(range, 2 * kGranule));
  EXPECT_CU(CU(cuMemRelease)(handle));
  EXPECT_CU(CU(cuMemRelease)(imported));
  EXPECT_CU(CU(cuMemAddressFree)(range, 2 * kGranule));
  EXPECT_EQ(80 * kGiB, Free());
}

TEST_F(VirtualMemory, IsNotExportedUnlessThatWasAskedFor) {
  const CUmemGenericAllocationHandle handle = Create(kGranule);
  int fd = -1;
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
            CU(cuMemExportToShareableHandle)(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
            CU(cuMemImportFromShareableHandle)(nullptr, nullptr, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
  CUmemGenericAllocationHandle imported = 0;
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
            CU(cuMemImportFromShareableHandle)(&imported, reinterpret_cast<void*>(intptr_t{STDERR_FILENO}),
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
  EXPECT_CU(CU(cuMemRelease)(handle));
}

TEST_F(VirtualMemory, OfSeventyGibibytesInSmallHandlesNeedsFewDescriptors) {
  const CUdeviceptr range = Reserve(70 * kGiB);
  std::vector<CUmemGenericAllocationHandle> handles;
  for (size_t at = 0; at < 70 * kGiB; at += 20 * kMiB) {
    if (at + 20 * kMiB > 70 * kGiB) break;
    handles.push_back(Create(20 * kMiB));
    EXPECT_CU(CU(cuMemMap)(range + at, 20 * kMiB, 0, handles.back(), 0));
    Access(range + at, 20 * kMiB, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  }
  Host(range + 69 * kGiB)[0] = 1;
  EXPECT_CU(CU(cuMemUnmap)(range, handles.size() * 20 * kMiB));
  for (const auto handle : handles) EXPECT_CU(CU(cuMemRelease)(handle));
  EXPECT_CU(CU(cuMemAddressFree)(range, 70 * kGiB));
  EXPECT_EQ(80 * kGiB, Free());
}

}  // namespace
}  // namespace fake_cuda_test
