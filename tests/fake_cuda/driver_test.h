// What the tests of the fake driver share: its functions, looked up in the library as programs do it.
#pragma once

#include <cuda.h>
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fake_cuda.h"

namespace fake_cuda_test {

inline void* Library() {
  static void* const library = dlopen(FAKE_CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    ADD_FAILURE() << dlerror();
    std::abort();
  }
  return library;
}

template <typename Function>
Function* Look(const char* name) {
  void* const address = dlsym(Library(), name);
  if (address == nullptr) {
    ADD_FAILURE() << name << " is not exported";
    std::abort();
  }
  return reinterpret_cast<Function*>(address);
}

#define FAKE_CUDA_TEXT(name) #name
#define FAKE_CUDA_NAME(name) FAKE_CUDA_TEXT(name)  // with cuda.h's macros: cuMemAlloc is cuMemAlloc_v2
#define CU(name) (fake_cuda_test::Look<decltype(name)>(FAKE_CUDA_NAME(name)))
#define EXPECT_CU(call) EXPECT_EQ(CUDA_SUCCESS, call)
#define ASSERT_CU(call) ASSERT_EQ(CUDA_SUCCESS, call)

template <typename Body>
[[noreturn]] void RunAndExit(Body body) {
  body();
  std::_Exit(testing::Test::HasFailure() ? EXIT_FAILURE : EXIT_SUCCESS);
}

// Runs a block in a process of its own, which has not called CUDA yet: the environment is read by cuInit.
#define EXPECT_IN_OWN_PROCESS(...)                                                         \
  do {                                                                                     \
    GTEST_FLAG_SET(death_test_style, "threadsafe");                                        \
    EXPECT_EXIT(RunAndExit([&] __VA_ARGS__), ::testing::ExitedWithCode(EXIT_SUCCESS), ""); \
  } while (false)

#define EXPECT_MISUSE(statement, sentence)          \
  do {                                              \
    GTEST_FLAG_SET(death_test_style, "threadsafe"); \
    EXPECT_DEATH(statement, sentence);              \
  } while (false)

constexpr size_t kMiB = size_t{1} << 20, kGiB = size_t{1} << 30;
constexpr size_t kGranule = 2 * kMiB;

// Initialises CUDA and makes the primary context of a device current, as a runtime does.
inline CUcontext Start(int device = 0) {
  CUcontext context = nullptr;
  EXPECT_CU(CU(cuInit)(0));
  EXPECT_CU(CU(cuDevicePrimaryCtxRetain)(&context, device));
  EXPECT_CU(CU(cuCtxSetCurrent)(context));
  return context;
}

// A test with the primary context of device 0. Nothing runs before the first call, so that a test can set variables.
class Driver : public testing::Test {
 protected:
  void SetUp() override {
    unsetenv("FAKE_CUDA_DEVICES");
    context = Start();
  }
  void TearDown() override { CU(cuDevicePrimaryCtxRelease)(0); }

  CUdeviceptr Allocate(size_t size) {
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuMemAlloc)(&address, size));
    return address;
  }
  size_t Free() {
    size_t free = 0, total = 0;
    EXPECT_CU(CU(cuMemGetInfo)(&free, &total));
    return free;
  }
  CUstream NewStream(unsigned flags = CU_STREAM_NON_BLOCKING) {
    CUstream stream = nullptr;
    EXPECT_CU(CU(cuStreamCreate)(&stream, flags));
    return stream;
  }
  CUevent NewEvent(unsigned flags = CU_EVENT_DISABLE_TIMING) {
    CUevent event = nullptr;
    EXPECT_CU(CU(cuEventCreate)(&event, flags));
    return event;
  }

  CUcontext context = nullptr;
};

inline CUmemAllocationProp OnDevice(int device, unsigned handle_types = CU_MEM_HANDLE_TYPE_NONE) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  properties.requestedHandleTypes = CUmemAllocationHandleType(handle_types);
  return properties;
}

inline void Access(CUdeviceptr address, size_t size, CUmemAccess_flags flags, CUresult expected = CUDA_SUCCESS) {
  const CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, flags};
  EXPECT_EQ(expected, CU(cuMemSetAccess)(address, size, &access, 1));
}

inline int* Host(CUdeviceptr address) { return reinterpret_cast<int*>(address); }

}  // namespace fake_cuda_test
