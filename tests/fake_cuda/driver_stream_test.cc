// Streams, events, contexts, kernels and look-up of the fake driver.
#include <thread>

#include "driver_test.h"

namespace fake_cuda_test {
namespace {

using Streams = Driver;
using Events = Driver;
using Contexts = Driver;
using Kernels = Driver;

TEST_F(Streams, KnowWhatTheyWereMadeWith) {
  int least = 1, greatest = 1, priority = 1;
  EXPECT_CU(CU(cuCtxGetStreamPriorityRange)(&least, &greatest));
  EXPECT_EQ(0, least);
  EXPECT_EQ(-5, greatest);
  CUstream stream = nullptr;
  ASSERT_CU(CU(cuStreamCreateWithPriority)(&stream, CU_STREAM_NON_BLOCKING, -100));
  EXPECT_CU(CU(cuStreamGetPriority)(stream, &priority));
  EXPECT_EQ(greatest, priority);
  unsigned flags = 0;
  EXPECT_CU(CU(cuStreamGetFlags)(stream, &flags));
  EXPECT_EQ(unsigned{CU_STREAM_NON_BLOCKING}, flags);
  CUcontext found = nullptr;
  EXPECT_CU(CU(cuStreamGetCtx)(stream, &found));
  EXPECT_EQ(context, found);
  EXPECT_CU(CU(cuStreamDestroy)(stream));
  EXPECT_MISUSE(CU(cuStreamQuery)(stream), "the stream was destroyed before");
  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, CU(cuStreamQuery)(reinterpret_cast<CUstream>(&flags)));
}

TEST_F(Streams, OfEachThreadByDefaultIfTheEntryPointSaysSo) {
  const auto id_of = [&](const char* function, CUstream stream) {
    unsigned long long id = 0;
    EXPECT_CU(CU(cuCtxSetCurrent)(context));
    EXPECT_CU(Look<decltype(cuStreamGetId)>(function)(stream, &id));
    return id;
  };
  const auto here = id_of("cuStreamGetId_ptsz", nullptr);
  EXPECT_EQ(here, id_of("cuStreamGetId", CU_STREAM_PER_THREAD));
  EXPECT_NE(here, id_of("cuStreamGetId", nullptr));
  EXPECT_EQ(id_of("cuStreamGetId", CU_STREAM_LEGACY), id_of("cuStreamGetId", nullptr));
  unsigned long long there = 0, legacy_there = 0;
  std::thread([&] {
    there = id_of("cuStreamGetId_ptsz", nullptr);
    legacy_there = id_of("cuStreamGetId", nullptr);
  }).join();
  EXPECT_NE(here, there);
  EXPECT_EQ(legacy_there, id_of("cuStreamGetId", nullptr));
}

TEST_F(Streams, CallHostFunctionsWhichMayCallCuda) {
  const CUstream stream = NewStream();
  CUdeviceptr address = 0;
  EXPECT_CU(CU(cuLaunchHostFunc)(
      stream, [](void* out) { EXPECT_CU(CU(cuMemAlloc)(static_cast<CUdeviceptr*>(out), 100)); }, &address));
  EXPECT_NE(0u, address);
  EXPECT_CU(CU(cuMemFree)(address));
  EXPECT_CU(CU(cuStreamDestroy)(stream));
}

TEST_F(Events, AreFinishedWhenTheyAreRecorded) {
  const CUstream stream = NewStream();
  const CUevent first = NewEvent(0), second = NewEvent(0);
  float milliseconds = -1;
  EXPECT_CU(CU(cuEventQuery)(first));
  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, CU(cuEventElapsedTime)(&milliseconds, first, second));
  EXPECT_CU(CU(cuEventRecord)(first, stream));
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_CU(CU(cuEventRecord)(second, stream));
  EXPECT_CU(CU(cuEventQuery)(second));
  EXPECT_CU(CU(cuEventElapsedTime)(&milliseconds, first, second));
  EXPECT_GE(milliseconds, 2);
  EXPECT_CU(CU(cuEventDestroy)(first));
  EXPECT_CU(CU(cuEventDestroy)(second));
  EXPECT_MISUSE(CU(cuEventQuery)(second), "the event was destroyed before");
  EXPECT_CU(CU(cuStreamDestroy)(stream));
}

TEST_F(Events, StayUnfinishedWhileTheyAreHeld) {
  const CUstream stream = NewStream(), other = NewStream();
  const CUevent before = NewEvent(), held = NewEvent(), later = NewEvent(), after = NewEvent();
  EXPECT_CU(CU(cuEventRecord)(before, stream));
  CU(fakeCudaHoldEvents)(1);
  EXPECT_CU(CU(cuEventRecord)(held, stream));
  EXPECT_CU(CU(cuEventRecord)(later, stream));
  EXPECT_CU(CU(cuStreamWaitEvent)(other, later, 0));
  EXPECT_CU(CU(cuEventRecord)(after, other));
  EXPECT_CU(CU(cuEventQuery)(before));
  EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuEventQuery)(held));
  EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuStreamQuery)(other));
  CU(fakeCudaReleaseEvents)(1);
  EXPECT_CU(CU(cuEventQuery)(held));
  EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuEventQuery)(later));
  EXPECT_CU(CU(cuEventSynchronize)(after));  // what the host waits for gets done, and what it depends on
  EXPECT_CU(CU(cuEventQuery)(later));
  EXPECT_CU(CU(cuStreamQuery)(stream));
  EXPECT_CU(CU(cuEventRecord)(held, stream));
  EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuEventQuery)(held));
  CU(fakeCudaHoldEvents)(0);
  EXPECT_CU(CU(cuEventQuery)(held));
  EXPECT_CU(CU(cuEventRecord)(held, stream));
  EXPECT_CU(CU(cuEventQuery)(held));
}

TEST_F(Events, HeldByTheThousandAreFinishedByOneWait) {
  const CUstream stream = NewStream();
  CU(fakeCudaHoldEvents)(1);
  const CUevent event = NewEvent();
  for (int i = 0; i < 200000; ++i) ASSERT_CU(CU(cuEventRecord)(event, stream));
  EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuEventQuery)(event));
  EXPECT_CU(CU(cuCtxSynchronize)());
  EXPECT_CU(CU(cuEventQuery)(event));
  CU(fakeCudaHoldEvents)(0);
}

TEST(EventsByEnvironment, AreHeldFromTheStart) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_HOLD_EVENTS", "1", 1);
    Start();
    CUevent event = nullptr;
    EXPECT_CU(CU(cuEventCreate)(&event, 0));
    EXPECT_CU(CU(cuEventRecord)(event, nullptr));
    EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuEventQuery)(event));
    CU(fakeCudaReleaseEvents)(1);
    EXPECT_CU(CU(cuEventQuery)(event));
  });
}

TEST_F(Contexts, AreStackedByThread) {
  CUcontext made = nullptr, current = nullptr;
  ASSERT_CU(CU(cuCtxCreate)(&made, nullptr, 0, 0));
  EXPECT_CU(CU(cuCtxGetCurrent)(&current));
  EXPECT_EQ(made, current);
  std::thread([&] {
    CUcontext there = made;
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuCtxGetCurrent)(&there));
    EXPECT_EQ(nullptr, there);
    EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, CU(cuMemAlloc)(&address, 1));
  }).join();
  EXPECT_CU(CU(cuCtxDestroy)(made));
  EXPECT_CU(CU(cuCtxGetCurrent)(&current));
  EXPECT_EQ(context, current);
  EXPECT_MISUSE(CU(cuCtxSetCurrent)(made), "the context was destroyed before");
}

TEST_F(Contexts, TakeTheirMemoryAlongWhenTheyAreReset) {
  const size_t before = Free();
  const CUdeviceptr address = Allocate(3 * kMiB);
  const CUstream stream = NewStream();
  EXPECT_CU(CU(cuDevicePrimaryCtxReset)(0));
  EXPECT_MISUSE(CU(cuMemFree)(address), "was freed before, by cuDevicePrimaryCtxReset");
  EXPECT_MISUSE(CU(cuStreamSynchronize)(stream), "the stream was destroyed before, or its context was");
  CUdeviceptr more = 0;
  EXPECT_MISUSE(CU(cuMemAlloc)(&more, 1), "the primary context of device 0 was reset or released");
  unsigned flags = 0;
  int active = 1;
  EXPECT_CU(CU(cuDevicePrimaryCtxGetState)(0, &flags, &active));
  EXPECT_EQ(0, active);
  Start();
  EXPECT_EQ(before, Free());
  EXPECT_CU(CU(cuDevicePrimaryCtxRelease)(0));
  EXPECT_CU(CU(cuMemAlloc)(&more, 1));
  EXPECT_CU(CU(cuMemFree)(more));
}

TEST_F(Contexts, LeaveStreamOrderedMemoryBehind) {
  CUcontext made = nullptr;
  CUdeviceptr address = 0;
  ASSERT_CU(CU(cuCtxCreate)(&made, nullptr, 0, 0));
  ASSERT_CU(CU(cuMemAllocAsync)(&address, 1000, nullptr));
  EXPECT_CU(CU(cuCtxDestroy)(made));
  Host(address)[0] = 1;
  EXPECT_CU(CU(cuMemFree)(address));
  EXPECT_CU(CU(cuCtxSynchronize)());  // gives the pool's memory back
}

TEST_F(Contexts, HaveLimits) {
  size_t value = 0;
  EXPECT_CU(CU(cuCtxGetLimit)(&value, CU_LIMIT_MALLOC_HEAP_SIZE));
  EXPECT_EQ(8 * kMiB, value);
  EXPECT_CU(CU(cuCtxSetLimit)(CU_LIMIT_MALLOC_HEAP_SIZE, 16 * kMiB));
  EXPECT_CU(CU(cuCtxGetLimit)(&value, CU_LIMIT_MALLOC_HEAP_SIZE));
  EXPECT_EQ(16 * kMiB, value);
}

TEST(Devices, AreAsManyAndAsLargeAsTheEnvironmentSays) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_DEVICES", "2", 1);
    setenv("FAKE_CUDA_MEMORY", "6GiB", 1);
    setenv("FAKE_CUDA_CAPABILITY", "7.5", 1);
    const CUcontext second = Start(1), first = Start(0);
    int count = 0, value = 0, can = 0;
    EXPECT_CU(CU(cuDeviceGetCount)(&count));
    EXPECT_EQ(2, count);
    EXPECT_CU(CU(cuDeviceGetAttribute)(&value, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 1));
    EXPECT_EQ(7, value);
    CUdeviceptr here = 0, there = 0;
    EXPECT_CU(CU(cuMemAlloc)(&here, 4 * kGiB));
    EXPECT_CU(CU(cuCtxSetCurrent)(second));
    size_t free = 0, total = 0;
    EXPECT_CU(CU(cuMemGetInfo)(&free, &total));
    EXPECT_EQ(6 * kGiB, free);
    EXPECT_CU(CU(cuMemAlloc)(&there, 4 * kGiB));
    EXPECT_CU(CU(cuPointerGetAttribute)(&value, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, there));
    EXPECT_EQ(1, value);
    EXPECT_CU(CU(cuDeviceCanAccessPeer)(&can, 0, 1));
    EXPECT_EQ(1, can);
    EXPECT_CU(CU(cuCtxEnablePeerAccess)(first, 0));
    EXPECT_EQ(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, CU(cuCtxEnablePeerAccess)(first, 0));
    Host(here)[0] = 12;
    EXPECT_CU(CU(cuMemcpyPeer)(there, second, here, first, 4));
    EXPECT_EQ(12, Host(there)[0]);
    CUuuid one, two;
    EXPECT_CU(CU(cuDeviceGetUuid)(&one, 0));
    EXPECT_CU(CU(cuDeviceGetUuid)(&two, 1));
    EXPECT_NE(0, std::memcmp(&one, &two, sizeof(one)));
    EXPECT_CU(CU(cuDevicePrimaryCtxReset)(1));  // leaves the other device alone
    EXPECT_CU(CU(cuMemFree)(here));
  });
}

TEST(Devices, MayBeNone) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_DEVICES", "0", 1);
    EXPECT_EQ(CUDA_ERROR_NO_DEVICE, CU(cuInit)(0));
  });
}

TEST_F(Kernels, AreAcceptedAndDoNothing) {
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  const char image[] = "any image";
  ASSERT_CU(CU(cuModuleLoadData)(&module, image));
  ASSERT_CU(CU(cuModuleGetFunction)(&function, module, "any_kernel"));
  EXPECT_CU(CU(cuLaunchKernel)(function, 1, 2, 3, 32, 1, 1, 0, nullptr, nullptr, nullptr));
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuLaunchKernel)(function, 0, 1, 1, 32, 1, 1, 0, nullptr, nullptr, nullptr));
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuLaunchKernel)(function, 1, 1, 1, 1025, 1, 1, 0, nullptr, nullptr, nullptr));
  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, CU(cuLaunchKernel)(nullptr, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr));
  int blocks = 0;
  EXPECT_CU(CU(cuOccupancyMaxActiveBlocksPerMultiprocessor)(&blocks, function, 256, 0));
  EXPECT_EQ(8, blocks);
  const char* name = nullptr;
  EXPECT_CU(CU(cuFuncGetName)(&name, function));
  EXPECT_STREQ("any_kernel", name);
  EXPECT_CU(CU(cuModuleUnload)(module));
  EXPECT_MISUSE(CU(cuModuleUnload)(module), "the module was unloaded before");
}

void* Find(const char* name, int version, cuuint64_t flags, CUdriverProcAddressQueryResult* status = nullptr) {
  void* address = nullptr;
  CU(cuGetProcAddress)(name, &address, version, flags, status);
  return address;
}

TEST(LookUp, FindsTheFormOfAVersion) {
  const auto exported = [](const char* name) { return reinterpret_cast<void*>(Look<int()>(name)); };
  EXPECT_EQ(exported("cuMemAlloc_v2"), Find("cuMemAlloc", 3020, 0));
  EXPECT_EQ(exported("cuMemAlloc_v2"), Find("cuMemAlloc", 13000, 0));
  EXPECT_EQ(exported("cuMemAlloc"), Find("cuMemAlloc", 2000, 0));
  EXPECT_EQ(exported("cuMemHostRegister_v2"), Find("cuMemHostRegister", 6050, 0));
  EXPECT_EQ(exported("cuStreamGetCaptureInfo_v2"), Find("cuStreamGetCaptureInfo", 12000, 0));
  EXPECT_EQ(exported("cuStreamGetCaptureInfo_v3"), Find("cuStreamGetCaptureInfo", 12030, 0));
  EXPECT_EQ(exported("cuDevicePrimaryCtxReset"), Find("cuDevicePrimaryCtxReset", 7000, 0));
  EXPECT_EQ(exported("cuGraphAddNode_v2"), Find("cuGraphAddNode", 12030, 0));
  EXPECT_EQ(exported("cuIpcOpenMemHandle"), Find("cuIpcOpenMemHandle", 4010, 0));
}

TEST(LookUp, FindsTheFormForTheThreadsOwnStream) {
  constexpr cuuint64_t kOwn = CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  const auto exported = [](const char* name) { return reinterpret_cast<void*>(Look<int()>(name)); };
  EXPECT_EQ(exported("cuMemcpyHtoD_v2_ptds"), Find("cuMemcpyHtoD", 13000, kOwn));
  EXPECT_EQ(exported("cuMemAllocAsync_ptsz"), Find("cuMemAllocAsync", 13000, kOwn));
  EXPECT_EQ(exported("cuMemAlloc_v2"), Find("cuMemAlloc", 13000, kOwn));
  EXPECT_EQ(exported("cuMemcpyHtoD_v2"), Find("cuMemcpyHtoD", 13000, 0));
  EXPECT_EQ(exported("cuMemcpyHtoD_v2"), Find("cuMemcpyHtoD_v2", 13000, 0));  // also by the exported name
}

TEST(LookUp, SaysWhyItFindsNothing) {
  CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
  EXPECT_EQ(nullptr, Find("cuNoSuchFunction", 13000, 0, &status));
  EXPECT_EQ(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, status);
  EXPECT_EQ(nullptr, Find("cuMemAllocAsync", 11000, 0, &status));
  EXPECT_EQ(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT, status);
  EXPECT_EQ(nullptr, Find("", 13000, 0, &status));
}

TEST(LookUp, GivesStubsThatSayNotSupported) {
  EXPECT_IN_OWN_PROCESS({
    Start();
    CUarray array = nullptr;
    EXPECT_EQ(CUDA_ERROR_NOT_SUPPORTED, CU(cuArrayCreate)(&array, nullptr));
  });
}

TEST(LookUp, NamesErrors) {
  const char* text = nullptr;
  EXPECT_CU(CU(cuGetErrorName)(CUDA_ERROR_OUT_OF_MEMORY, &text));
  EXPECT_STREQ("CUDA_ERROR_OUT_OF_MEMORY", text);
  EXPECT_CU(CU(cuGetErrorString)(CUDA_ERROR_OUT_OF_MEMORY, &text));
  EXPECT_STREQ("out of memory", text);
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuGetErrorName)(CUresult(12345), &text));
}

}  // namespace
}  // namespace fake_cuda_test
