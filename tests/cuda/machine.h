// The CUDA that a test program runs on: whatever libcuda.so.1 the loader finds, the fake one or a real one.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "driver_api.h"
#include "gpuledger/cuda_upstream.h"

namespace gpuledger::testing {

// The driver's functions as the tests call them, and the controls of the fake.
class Machine {
 public:
  static Machine& Get() {
    static Machine& machine = *new Machine;
    return machine;
  }

  [[nodiscard]] bool has_driver() const { return library_ != nullptr; }
  [[nodiscard]] bool fake() const { return inject_faults_ != nullptr; }

  template <class Function>
  Function Find(const char* exported) const {
    return reinterpret_cast<Function>(dlsym(library_, exported));
  }
  // Calls a driver function by its exported name, "cuStreamCreate", whose parameters are those of the arguments.
  template <class... Arguments>
  cuda::Result Call(const char* exported, Arguments... arguments) const {
    return Find<cuda::Result (*)(Arguments...)>(exported)(arguments...);
  }

  void HoldEvents(bool hold) const { Find<void (*)(int)>("fakeCudaHoldEvents")(hold ? 1 : 0); }
  void ReleaseEvents(uint64_t count) const { Find<void (*)(unsigned long long)>("fakeCudaReleaseEvents")(count); }
  [[nodiscard]] uint64_t Calls(const char* function) const {
    return Find<unsigned long long (*)(const char*)>("fakeCudaCallCount")(function);
  }
  void InjectFaults(const std::string& faults) const { ASSERT_EQ(inject_faults_(faults.c_str()), 1) << faults; }
  void ClearFaults() const { Find<void (*)()>("fakeCudaClearFaults")(); }

 private:
  Machine() {
    setenv("FAKE_CUDA_DEVICES", "2", 0);
    setenv("FAKE_CUDA_MEMORY", "2GiB", 0);
    library_ = dlopen("libcuda.so.1", RTLD_NOW);
    if (library_ != nullptr) inject_faults_ = Find<int (*)(const char*)>("fakeCudaInjectFaults");
  }

  void* library_ = nullptr;
  int (*inject_faults_)(const char*) = nullptr;
};

inline std::unique_ptr<CudaUpstream> OpenCuda(int device = 0, const CudaOptions& options = {}) {
  if (!Machine::Get().has_driver()) return nullptr;
  absl::StatusOr<std::unique_ptr<CudaUpstream>> upstream = CudaUpstream::Open(DeviceId(device), options);
  if (!upstream.ok()) std::fprintf(stderr, "%s\n", upstream.status().ToString().c_str());
  return upstream.ok() ? *std::move(upstream) : nullptr;
}

// Skips where there is no driver, or, with `needs_fake`, where it is a real one.
class CudaTest : public ::testing::Test {
 protected:
  explicit CudaTest(bool needs_fake = false) : needs_fake_(needs_fake) {}
  void SetUp() override {
    if (!machine().has_driver()) GTEST_SKIP() << "no libcuda.so.1 here";
    if (needs_fake_ && !machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
    upstream_ = OpenCuda();
    if (upstream_ == nullptr) GTEST_SKIP() << "no usable CUDA device here";
  }
  void TearDown() override {
    if (!machine().fake()) return;
    machine().ClearFaults();
    machine().HoldEvents(false);
  }

  static Machine& machine() { return Machine::Get(); }
  CudaUpstream& upstream() { return *upstream_; }
  Stream stream() { return Stream::Default(upstream().device()); }

  const bool needs_fake_;
  std::unique_ptr<CudaUpstream> upstream_;
};

// A stream of the primary context of device 0, not synchronising with the default stream.
class OwnStream {
 public:
  OwnStream() {
    Enter();
    EXPECT_EQ(Machine::Get().Call("cuStreamCreate", &raw_, 1u), cuda::kSuccess);
    Leave();
  }
  ~OwnStream() { Machine::Get().Call("cuStreamDestroy_v2", raw_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  [[nodiscard]] CUstream_st* raw() const { return raw_; }
  [[nodiscard]] Stream stream() const { return Stream(DeviceId(0), raw_); }

 private:
  static void Enter() {
    cuda::Context context = nullptr;
    EXPECT_EQ(Machine::Get().Call("cuDevicePrimaryCtxRetain", &context, 0), cuda::kSuccess);
    EXPECT_EQ(Machine::Get().Call("cuCtxPushCurrent_v2", context), cuda::kSuccess);
  }
  static void Leave() {
    cuda::Context context = nullptr;
    EXPECT_EQ(Machine::Get().Call("cuCtxPopCurrent_v2", &context), cuda::kSuccess);
    EXPECT_EQ(Machine::Get().Call("cuDevicePrimaryCtxRelease_v2", 0), cuda::kSuccess);
  }
  CUstream_st* raw_ = nullptr;
};

}  // namespace gpuledger::testing
