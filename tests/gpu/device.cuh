// What the tests on a device share: skipping without one, streams, patterns that kernels write and check.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "gpuledger/cuda_upstream.h"

namespace gpuledger::gpu {

// The reason why nothing can be run on a device here; empty if one can.
inline std::string WhyNoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no usable CUDA device: ") + cudaGetErrorString(error);
  return count == 0 ? "no CUDA device in this machine" : "";
}

#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaPeekAtLastError())

// A word that depends on who wrote it and where: a wrong owner, a wrong place and old content are all told apart.
__host__ __device__ inline uint64_t Word(uint64_t seed, uint64_t index) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + index;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static __global__ void WritePattern(uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += uint64_t{gridDim.x} * blockDim.x) {
    words[i] = Word(seed, i);
  }
}

// The same after a while, so that it is still at work when the host goes on.
static __global__ void WritePatternSlowly(uint64_t* words, uint64_t count, uint64_t seed, int64_t cycles) {
  const int64_t begin = clock64();
  while (clock64() - begin < cycles) {
  }
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += uint64_t{gridDim.x} * blockDim.x) {
    words[i] = Word(seed, i);
  }
}

static __global__ void CheckPattern(const uint64_t* words, uint64_t count, uint64_t seed, unsigned long long* wrong) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += uint64_t{gridDim.x} * blockDim.x) {
    if (words[i] != Word(seed, i)) atomicAdd(wrong, 1ull);
  }
}

// Writes and reads back its own words again and again for a while.
static __global__ void UseForAWhile(uint64_t* words, uint64_t count, uint64_t seed, int64_t cycles,
                                    unsigned long long* wrong) {
  const int64_t begin = clock64();
  for (uint64_t round = 0; clock64() - begin < cycles; ++round) {
    for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count;
         i += uint64_t{gridDim.x} * blockDim.x) {
      volatile uint64_t* const word = words + i;
      *word = Word(seed + round, i);
      if (*word != Word(seed + round, i)) atomicAdd(wrong, 1ull);
    }
  }
}

inline uint32_t BlocksFor(uint64_t words) {
  return static_cast<uint32_t>(std::min<uint64_t>((words + 255) / 256, 264));
}

// A counter on the device, of words that were not what they should be.
class WrongWords {
 public:
  WrongWords() {
    EXPECT_CUDA(cudaMalloc(&counter_, sizeof(*counter_)));
    EXPECT_CUDA(cudaMemset(counter_, 0, sizeof(*counter_)));
  }
  ~WrongWords() { cudaFree(counter_); }
  WrongWords(const WrongWords&) = delete;
  WrongWords& operator=(const WrongWords&) = delete;
  [[nodiscard]] unsigned long long* device() const { return counter_; }
  // Waits for the device.
  unsigned long long Count() {
    unsigned long long count = ~0ull;
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(&count, counter_, sizeof(count), cudaMemcpyDeviceToHost));
    return count;
  }

 private:
  unsigned long long* counter_ = nullptr;
};

class OwnStream {
 public:
  OwnStream() { EXPECT_CUDA(cudaStreamCreateWithFlags(&raw_, cudaStreamNonBlocking)); }
  ~OwnStream() { cudaStreamDestroy(raw_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  [[nodiscard]] cudaStream_t raw() const { return raw_; }
  [[nodiscard]] Stream stream() const { return Stream(DeviceId(0), raw_); }

 private:
  cudaStream_t raw_ = nullptr;
};

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
    absl::StatusOr<std::unique_ptr<CudaUpstream>> opened = CudaUpstream::Open(DeviceId(0));
    ASSERT_TRUE(opened.ok()) << opened.status();
    upstream_ = *std::move(opened);
    int khz = 0;
    EXPECT_CUDA(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
    cycles_per_us_ = std::max(1, khz / 1000);
  }
  CudaUpstream& upstream() { return *upstream_; }
  [[nodiscard]] int64_t Cycles(int64_t us) const { return us * cycles_per_us_; }

  std::unique_ptr<CudaUpstream> upstream_;
  int64_t cycles_per_us_ = 1;
};

inline uint64_t* WordsAt(DevicePtr address) { return reinterpret_cast<uint64_t*>(address.address()); }

}  // namespace gpuledger::gpu
