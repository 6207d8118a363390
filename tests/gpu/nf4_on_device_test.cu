// What a device makes of bytes that the host quantized: the same floats, bit for bit.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "gpuledger/codec.h"

namespace gpuledger {
namespace {

constexpr FourBitFormat kNf4;

__constant__ float kDeviceTable[16];

__global__ void Dequantize(const uint8_t* packed, const float* absmax, uint64_t block, uint64_t elements, float* out) {
  const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= elements) return;
  const uint8_t pair = packed[i / 2];
  const uint8_t code = i % 2 == 0 ? pair >> 4 : pair & 15;
  out[i] = kDeviceTable[code] * absmax[i / block];
}

// The reason why nothing can be run on a device here; empty if one can.
std::string WhyNoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no usable CUDA device: ") + cudaGetErrorString(error);
  return count == 0 ? "no CUDA device in this machine" : "";
}

struct CudaFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
template <class T>
using DeviceArray = std::unique_ptr<T, CudaFree>;

template <class T>
DeviceArray<T> Upload(const std::vector<T>& host) {
  void* device = nullptr;
  EXPECT_EQ(cudaMalloc(&device, host.size() * sizeof(T)), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  return DeviceArray<T>(static_cast<T*>(device));
}

std::vector<float> DequantizeOnDevice(const std::vector<uint8_t>& packed, const std::vector<float>& absmax,
                                      uint64_t elements) {
  EXPECT_EQ(cudaMemcpyToSymbol(kDeviceTable, CodeTable(QuantType::kNf4).data(), sizeof(kDeviceTable)), cudaSuccess);
  const DeviceArray<uint8_t> device_packed = Upload(packed);
  const DeviceArray<float> device_absmax = Upload(absmax);
  std::vector<float> out(elements, std::nanf(""));
  const DeviceArray<float> device_out = Upload(out);
  constexpr uint32_t kThreads = 256;
  const auto blocks = static_cast<uint32_t>((elements + kThreads - 1) / kThreads);
  Dequantize<<<blocks, kThreads>>>(device_packed.get(), device_absmax.get(), kNf4.block, elements, device_out.get());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(out.data(), device_out.get(), elements * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
  return out;
}

class Nf4OnDeviceTest : public testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override {
    const std::string why = WhyNoDevice();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(Nf4OnDeviceTest, DequantizesToTheBitsOfTheHost) {
  const uint64_t elements = GetParam();
  std::mt19937_64 random(elements);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> weights(elements);
  for (float& w : weights) w = normal(random);
  // One block of zeros and one with an outlier, where there are as many.
  for (uint64_t i = 0; i < kNf4.block && i + kNf4.block < elements; ++i) weights[i] = 0.0f;
  weights.back() = -1e30f;

  std::vector<uint8_t> packed(PackedBytes(elements).count());
  std::vector<float> absmax(BlockCount(elements, kNf4.block));
  Quantize4Bit(kNf4, Dialect::kCpu, FloatType::kFloat32, weights.data(), elements, packed, absmax);
  std::vector<float> host(elements);
  Dequantize4Bit(kNf4, packed, absmax, elements, FloatType::kFloat32, host.data());

  const std::vector<float> device = DequantizeOnDevice(packed, absmax, elements);
  EXPECT_EQ(std::memcmp(device.data(), host.data(), elements * sizeof(float)), 0);
}

// One element, an odd count, a partial last block, whole blocks, and MiniLM's largest linear weight.
INSTANTIATE_TEST_SUITE_P(Sizes, Nf4OnDeviceTest, testing::Values(1, 63, 4095, 4096, 1536 * 384));

}  // namespace
}  // namespace gpuledger
