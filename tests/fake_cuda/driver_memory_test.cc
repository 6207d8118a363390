// Plain, pinned, managed and stream-ordered memory of the fake driver, and copies.
#include "driver_test.h"

namespace fake_cuda_test {
namespace {

using Memory = Driver;
using HostMemory = Driver;
using StreamOrderedMemory = Driver;
using Copies = Driver;

TEST_F(Memory, MayBeLargerThanTheMachine) {
  const CUdeviceptr address = Allocate(70 * kGiB);
  ASSERT_NE(0u, address);
  Host(address)[0] = 1;
  Host(address + 69 * kGiB)[0] = 2;
  EXPECT_EQ(1, Host(address)[0]);
  EXPECT_EQ(2, Host(address + 69 * kGiB)[0]);
  EXPECT_EQ(10 * kGiB, Free());
  EXPECT_CU(CU(cuMemFree)(address));
  EXPECT_EQ(80 * kGiB, Free());
}

TEST_F(Memory, IsZeroWhenItIsTakenAgain) {
  const CUdeviceptr first = Allocate(kGranule);
  Host(first)[0] = 42;
  EXPECT_CU(CU(cuMemFree)(first));
  const CUdeviceptr second = Allocate(kGranule);
  EXPECT_EQ(0, Host(second)[0]);
  EXPECT_CU(CU(cuMemFree)(second));
}

TEST_F(Memory, OfSmallSizesSharesAGranule) {
  const size_t before = Free();
  std::vector<CUdeviceptr> all;
  for (int i = 0; i < 1000; ++i) all.push_back(Allocate(1000));
  EXPECT_EQ(before - kGranule, Free());
  for (const CUdeviceptr address : all) EXPECT_EQ(0u, address % 256);
  for (const CUdeviceptr address : all) EXPECT_CU(CU(cuMemFree)(address));
  EXPECT_EQ(before, Free());
}

TEST_F(Memory, RunsOut) {
  CUdeviceptr all = Allocate(80 * kGiB), more = 7;
  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAlloc)(&more, 1));
  EXPECT_EQ(7u, more);
  EXPECT_CU(CU(cuMemFree)(all));
  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAlloc)(&more, 80 * kGiB + 1));
  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAlloc)(&more, SIZE_MAX));
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemAlloc)(&more, 0));
}

TEST_F(Memory, FitsAlsoWhereWhatIsFreeIsInPieces) {
  std::vector<CUdeviceptr> all;
  for (int i = 0; i < 80; ++i) all.push_back(Allocate(kGiB));
  for (int i = 0; i < 80; i += 2) EXPECT_CU(CU(cuMemFree)(all[size_t(i)]));
  const CUdeviceptr large = Allocate(40 * kGiB);
  Host(large + 39 * kGiB)[0] = 5;
  EXPECT_EQ(5, Host(large + 39 * kGiB)[0]);
  EXPECT_EQ(0u, Free());
  EXPECT_CU(CU(cuMemFree)(large));
  for (int i = 1; i < 80; i += 2) EXPECT_CU(CU(cuMemFree)(all[size_t(i)]));
}

TEST_F(Memory, OfNothingIsFreedWithoutEffect) { EXPECT_CU(CU(cuMemFree)(0)); }

TEST_F(Memory, FreedTwiceStopsTheProgram) {
  const CUdeviceptr address = Allocate(100);
  EXPECT_CU(CU(cuMemFree)(address));
  EXPECT_MISUSE(CU(cuMemFree)(address), "cuMemFree_v2: 0x[0-9a-f]+ was freed before, by cuMemFree");
}

TEST_F(Memory, FreedByTheWrongFamilyStopsTheProgram) {
  const CUdeviceptr address = Allocate(100);
  void* pinned = nullptr;
  ASSERT_CU(CU(cuMemHostAlloc)(&pinned, 100, 0));
  EXPECT_MISUSE(CU(cuMemFreeHost)(Host(address)), "comes from cuMemAlloc and goes back with cuMemFree");
  EXPECT_MISUSE(CU(cuMemFree)(CUdeviceptr(pinned)), "comes from cuMemHostAlloc and goes back with cuMemFreeHost");
  EXPECT_MISUSE(CU(cuIpcCloseMemHandle)(address), "comes from cuMemAlloc and goes back with cuMemFree");
  EXPECT_MISUSE(CU(cuMemFree)(address + 8), "lies inside the 100 bytes that cuMemAlloc gave");
  EXPECT_MISUSE(CU(cuMemFree)(CUdeviceptr(&pinned)), "was never allocated");
  EXPECT_CU(CU(cuMemFreeHost)(pinned));
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST(MemoryMisuse, ReturnsTheDriversErrorIfThatIsAskedFor) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_MISUSE", "error", 1);
    Start();
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuMemAlloc)(&address, 100));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFreeHost)(Host(address)));
    EXPECT_CU(CU(cuMemFree)(address));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFree)(address));
  });
}

TEST_F(Memory, HasAPitch) {
  CUdeviceptr address = 0;
  size_t pitch = 0;
  ASSERT_CU(CU(cuMemAllocPitch)(&address, &pitch, 1000, 30, 4));
  EXPECT_EQ(1024u, pitch);
  size_t size = 0;
  CUdeviceptr base = 0;
  EXPECT_CU(CU(cuMemGetAddressRange)(&base, &size, address + 5000));
  EXPECT_EQ(address, base);
  EXPECT_EQ(30u * 1024, size);
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Memory, IsKnownByItsAddress) {
  const CUdeviceptr address = Allocate(3 * kMiB);
  CUmemorytype type = CUmemorytype(0);
  size_t size = 0;
  CUdeviceptr start = 0;
  int device = -1;
  unsigned managed = 1;
  unsigned long long id = 0, other_id = 0;
  EXPECT_CU(CU(cuPointerGetAttribute)(&id, CU_POINTER_ATTRIBUTE_BUFFER_ID, address));
  CUpointer_attribute attributes[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                                      CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                      CU_POINTER_ATTRIBUTE_IS_MANAGED};
  void* values[] = {&type, &size, &start, &device, &managed};
  EXPECT_CU(CU(cuPointerGetAttributes)(5, attributes, values, address + 17));
  EXPECT_EQ(CU_MEMORYTYPE_DEVICE, type);
  EXPECT_EQ(3 * kMiB, size);
  EXPECT_EQ(address, start);
  EXPECT_EQ(0, device);
  EXPECT_EQ(0u, managed);
  EXPECT_CU(CU(cuMemFree)(address));
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address));
  EXPECT_CU(CU(cuPointerGetAttributes)(5, attributes, values, address));  // says "unknown" instead
  EXPECT_EQ(0, type);
  EXPECT_EQ(-2, device);
  const CUdeviceptr again = Allocate(3 * kMiB);
  EXPECT_CU(CU(cuPointerGetAttribute)(&other_id, CU_POINTER_ATTRIBUTE_BUFFER_ID, again));
  EXPECT_NE(id, other_id);
  EXPECT_CU(CU(cuMemFree)(again));
}

TEST_F(Memory, OfManagedKindIsKnownAsSuch) {
  CUdeviceptr address = 0;
  ASSERT_CU(CU(cuMemAllocManaged)(&address, kMiB, CU_MEM_ATTACH_GLOBAL));
  unsigned managed = 0;
  EXPECT_CU(CU(cuPointerGetAttribute)(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address));
  EXPECT_EQ(1u, managed);
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(HostMemory, IsSeenByTheDeviceAtTheSameAddress) {
  void* pinned = nullptr;
  ASSERT_CU(CU(cuMemHostAlloc)(&pinned, 5000, CU_MEMHOSTALLOC_PORTABLE));
  CUdeviceptr address = 0;
  unsigned flags = 0;
  CUmemorytype type = CUmemorytype(0);
  EXPECT_CU(CU(cuMemHostGetDevicePointer)(&address, pinned, 0));
  EXPECT_EQ(CUdeviceptr(pinned), address);
  EXPECT_CU(CU(cuMemHostGetFlags)(&flags, pinned));
  EXPECT_EQ(unsigned{CU_MEMHOSTALLOC_PORTABLE}, flags);
  EXPECT_CU(CU(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address));
  EXPECT_EQ(CU_MEMORYTYPE_HOST, type);
  EXPECT_CU(CU(cuMemFreeHost)(pinned));
  EXPECT_MISUSE(CU(cuMemFreeHost)(pinned), "was freed before, by cuMemFreeHost");
}

TEST_F(HostMemory, IsRegisteredOnce) {
  std::vector<char> memory(100000);
  EXPECT_CU(CU(cuMemHostRegister)(memory.data(), memory.size(), 0));
  EXPECT_EQ(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, CU(cuMemHostRegister)(memory.data() + 100, 10, 0));
  EXPECT_CU(CU(cuMemHostUnregister)(memory.data()));
  EXPECT_MISUSE(CU(cuMemHostUnregister)(memory.data()), "was freed before, by cuMemHostUnregister");
}

TEST_F(StreamOrderedMemory, IsKeptByItsPoolUntilASynchronisation) {
  const CUstream stream = NewStream();
  CUmemoryPool pool = nullptr;
  ASSERT_CU(CU(cuDeviceGetDefaultMemPool)(&pool, 0));
  const auto get = [&](CUmemPool_attribute attribute) {
    cuuint64_t value = 0;
    EXPECT_CU(CU(cuMemPoolGetAttribute)(pool, attribute, &value));
    return value;
  };
  cuuint64_t zero = 0;
  EXPECT_CU(CU(cuMemPoolSetAttribute)(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &zero));
  CUdeviceptr address = 0;
  ASSERT_CU(CU(cuMemAllocAsync)(&address, 1000, stream));
  EXPECT_EQ(1000u, get(CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  EXPECT_EQ(32 * kMiB, get(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  EXPECT_CU(CU(cuMemFreeAsync)(address, stream));
  EXPECT_EQ(0u, get(CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  EXPECT_EQ(32 * kMiB, get(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  EXPECT_CU(CU(cuStreamSynchronize)(stream));
  EXPECT_EQ(0u, get(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  EXPECT_EQ(1000u, get(CU_MEMPOOL_ATTR_USED_MEM_HIGH));

  cuuint64_t keep = UINT64_MAX;
  EXPECT_CU(CU(cuMemPoolSetAttribute)(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
  ASSERT_CU(CU(cuMemAllocAsync)(&address, 1000, stream));
  EXPECT_CU(CU(cuMemFree)(address));  // also this may free it
  EXPECT_CU(CU(cuCtxSynchronize)());
  EXPECT_EQ(32 * kMiB, get(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  EXPECT_CU(CU(cuMemPoolTrimTo)(pool, 0));
  EXPECT_EQ(0u, get(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  keep = 0;
  EXPECT_CU(CU(cuMemPoolSetAttribute)(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
  EXPECT_CU(CU(cuStreamDestroy)(stream));
}

TEST_F(StreamOrderedMemory, ComesFromThePoolThatIsAskedForAndOutlivesItsEnd) {
  CUmemPoolProps props = {};
  props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  props.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  props.maxSize = 64 * kMiB;
  CUmemoryPool pool = nullptr, found = nullptr;
  ASSERT_CU(CU(cuMemPoolCreate)(&pool, &props));
  const size_t before = Free();
  CUdeviceptr address = 0, more = 0;
  ASSERT_CU(CU(cuMemAllocFromPoolAsync)(&address, 60 * kMiB, pool, nullptr));
  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAllocFromPoolAsync)(&more, 60 * kMiB, pool, nullptr));
  EXPECT_CU(CU(cuPointerGetAttribute)(&found, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, address));
  EXPECT_EQ(pool, found);
  EXPECT_CU(CU(cuMemPoolDestroy)(pool));
  EXPECT_MISUSE(CU(cuMemPoolTrimTo)(pool, 0), "the pool was destroyed before");
  Host(address)[0] = 3;
  EXPECT_CU(CU(cuMemFreeAsync)(address, nullptr));
  EXPECT_EQ(before, Free());
}

TEST_F(StreamOrderedMemory, IsTakenFromOtherPoolsWhenTheDeviceIsFull) {
  cuuint64_t keep = UINT64_MAX;
  CUmemoryPool pool = nullptr;
  ASSERT_CU(CU(cuDeviceGetDefaultMemPool)(&pool, 0));
  EXPECT_CU(CU(cuMemPoolSetAttribute)(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
  CUdeviceptr address = 0;
  ASSERT_CU(CU(cuMemAllocAsync)(&address, 60 * kGiB, nullptr));
  EXPECT_CU(CU(cuMemFreeAsync)(address, nullptr));
  ASSERT_CU(CU(cuMemAllocAsync)(&address, 70 * kGiB, nullptr));
  EXPECT_CU(CU(cuMemFreeAsync)(address, nullptr));
  EXPECT_MISUSE(CU(cuMemFreeAsync)(address, nullptr), "was freed before, by cuMemFreeAsync");
  keep = 0;
  EXPECT_CU(CU(cuMemPoolSetAttribute)(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
  EXPECT_CU(CU(cuMemPoolTrimTo)(pool, 0));
}

TEST_F(Copies, CopyBothWaysAndWithin) {
  const CUdeviceptr first = Allocate(4096), second = Allocate(4096);
  std::vector<int> data(1024), back(1024);
  for (size_t i = 0; i < data.size(); ++i) data[i] = int(i * 7);
  EXPECT_CU(CU(cuMemcpyHtoD)(first, data.data(), 4096));
  EXPECT_CU(CU(cuMemcpyDtoDAsync)(second, first, 4096, nullptr));
  EXPECT_CU(CU(cuMemcpyAsync)(CUdeviceptr(back.data()), second, 4096, nullptr));
  EXPECT_EQ(data, back);
  EXPECT_CU(CU(cuMemsetD32)(first, 0x01020304, 1024));
  EXPECT_CU(CU(cuMemcpyDtoH)(back.data(), first, 4096));
  EXPECT_THAT(back, testing::Each(0x01020304));
  EXPECT_CU(CU(cuMemFree)(first));
  EXPECT_CU(CU(cuMemFree)(second));
}

TEST_F(Copies, CopyRectanglesAndFillThem) {
  const CUdeviceptr address = Allocate(64 * 64);
  EXPECT_CU(CU(cuMemsetD8)(address, 1, 64 * 64));
  EXPECT_CU(CU(cuMemsetD2D8)(address + 64 * 2 + 3, 64, 9, 5, 4));
  char rows[4][5] = {};
  CUDA_MEMCPY2D copy = {};
  copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
  copy.srcDevice = address;
  copy.srcPitch = 64;
  copy.srcXInBytes = 3;
  copy.srcY = 2;
  copy.dstMemoryType = CU_MEMORYTYPE_HOST;
  copy.dstHost = rows;
  copy.dstPitch = 5;
  copy.WidthInBytes = 5;
  copy.Height = 4;
  EXPECT_CU(CU(cuMemcpy2D)(&copy));
  for (const auto& row : rows) EXPECT_THAT(row, testing::Each(9));
  EXPECT_EQ(1, reinterpret_cast<char*>(address)[64 * 2 + 2]);
  EXPECT_EQ(1, reinterpret_cast<char*>(address)[64 * 2 + 8]);
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Copies, OverTheEndStopTheProgram) {
  const CUdeviceptr address = Allocate(1024);
  std::vector<char> data(2048);
  EXPECT_MISUSE(CU(cuMemcpyHtoD)(address, data.data(), 1025), "the destination .* is not memory that was allocated");
  EXPECT_MISUSE(CU(cuMemcpyDtoH)(data.data(), address + 1, 1024), "the source .* is not memory that was allocated");
  EXPECT_MISUSE(CU(cuMemsetD8)(address, 0, 1025), "is not memory that was allocated");
  EXPECT_CU(CU(cuMemFree)(address));
}

}  // namespace
}  // namespace fake_cuda_test
