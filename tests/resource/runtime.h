// The CUDA runtime as the tests use it: streams made and destroyed, memory filled and read, streams held up.
//
// libcudart.so.13 is the one that the loader finds, or else the one that GPULEDGER_TEST_CUDART names; under it is whatever
// driver the loader finds, the fake one or a real one (machine.h of tests/cuda).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "machine.h"

namespace gpuledger::testing {

class Runtime {
 public:
  static Runtime& Get() {
    static Runtime& runtime = *new Runtime;
    return runtime;
  }
  [[nodiscard]] bool found() const { return library_ != nullptr; }

  template <class Function>
  Function* Find(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(library_, name));
  }

 private:
  Runtime() {
    Machine::Get();  // the fake's environment is set before its driver is initialised
    library_ = dlopen("libcudart.so.13", RTLD_NOW | RTLD_GLOBAL);
    const char* const other = std::getenv("GPULEDGER_TEST_CUDART");
    if (library_ == nullptr && other != nullptr) library_ = dlopen(other, RTLD_NOW | RTLD_GLOBAL);
  }
  void* library_ = nullptr;
};

// CUDART(cudaMemset)(…): the function of the runtime that was found, with the type that its header gives it.
#define CUDART(function) (::gpuledger::testing::Runtime::Get().Find<decltype(function)>(#function))

inline int DeviceCount() {
  int count = 0;
  return CUDART(cudaGetDeviceCount)(&count) == cudaSuccess ? count : 0;
}

// A stream of the runtime that does not synchronise with the default one. Destroy may come before the end.
class RuntimeStream {
 public:
  explicit RuntimeStream(int device = 0) {
    EXPECT_EQ(CUDART(cudaSetDevice)(device), cudaSuccess);
    EXPECT_EQ(CUDART(cudaStreamCreateWithFlags)(&raw_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(CUDART(cudaSetDevice)(0), cudaSuccess);
  }
  ~RuntimeStream() { Destroy(); }
  RuntimeStream(const RuntimeStream&) = delete;
  RuntimeStream& operator=(const RuntimeStream&) = delete;

  void Destroy() {
    if (raw_ == nullptr) return;
    EXPECT_EQ(CUDART(cudaStreamDestroy)(std::exchange(raw_, nullptr)), cudaSuccess);
  }
  [[nodiscard]] cudaStream_t raw() const { return raw_; }

 private:
  cudaStream_t raw_ = nullptr;
};

inline void Synchronize(cudaStream_t stream) { EXPECT_EQ(CUDART(cudaStreamSynchronize)(stream), cudaSuccess); }

// Queues a fill of [pointer, pointer + bytes) with `value`.
inline void Fill(void* pointer, size_t bytes, uint8_t value, cudaStream_t stream) {
  EXPECT_EQ(CUDART(cudaMemsetAsync)(pointer, value, bytes, stream), cudaSuccess);
}

// Whether the first and last bytes (at most 4096 each), when the stream comes to it, are all `value`. Waits for the stream.
inline bool Holds(const void* pointer, size_t bytes, uint8_t value, cudaStream_t stream) {
  const size_t part = std::min<size_t>(bytes, 4096);
  std::vector<uint8_t> ends(2 * part);
  EXPECT_EQ(CUDART(cudaMemcpyAsync)(ends.data(), pointer, part, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(CUDART(cudaMemcpyAsync)(ends.data() + part, static_cast<const char*>(pointer) + bytes - part, part,
                                    cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(CUDART(cudaStreamSynchronize)(stream), cudaSuccess);
  return std::all_of(ends.begin(), ends.end(), [value](uint8_t byte) { return byte == value; });
}

// Work of `stream` that is not done before Release: a host function that waits. On the fake all streams' events are held.
class HeldStream {
 public:
  explicit HeldStream(cudaStream_t stream) : stream_(stream) {
    if (Machine::Get().fake()) {
      Machine::Get().HoldEvents(true);
      return;
    }
    const auto wait = [](void* flag) { static_cast<std::atomic<bool>*>(flag)->wait(false); };
    EXPECT_EQ(CUDART(cudaLaunchHostFunc)(stream, wait, &released_), cudaSuccess);
  }
  ~HeldStream() { Release(); }
  HeldStream(const HeldStream&) = delete;
  HeldStream& operator=(const HeldStream&) = delete;

  // Returns when the work is done.
  void Release() {
    if (released_.exchange(true)) return;
    if (Machine::Get().fake()) return Machine::Get().HoldEvents(false);
    released_.notify_all();
    EXPECT_EQ(CUDART(cudaStreamSynchronize)(stream_), cudaSuccess);
  }

 private:
  const cudaStream_t stream_;
  std::atomic<bool> released_ = false;
};

// Skips where there is no driver, no device or no runtime.
class RuntimeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Machine::Get().has_driver()) GTEST_SKIP() << "no libcuda.so.1 here";
    if (!Runtime::Get().found()) GTEST_SKIP() << "no libcudart.so.13 here";
    if (DeviceCount() == 0) GTEST_SKIP() << "no usable CUDA device here";
    ASSERT_EQ(CUDART(cudaSetDevice)(0), cudaSuccess);
  }
  void TearDown() override {
    if (Machine::Get().has_driver() && Machine::Get().fake()) Machine::Get().HoldEvents(false);
  }
};

}  // namespace gpuledger::testing
