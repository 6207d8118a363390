// The 4-bit codec on host memory: GB/s of the 16- or 32-bit side, by format, element type and threads.
//
// Names: Quantize/TYPE/ELEMENT/BLOCK and Dequantize/..., as bench/codec_peer.py measures bitsandbytes.
// bytes_per_second counts the unquantized elements, read or written. Threads share one weight, cut at whole blocks.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/codec.h"

namespace {

using namespace gpuledger;

constexpr uint64_t kElements = uint64_t{4096} * 4096;

struct Weight {
  FourBitFormat format;
  FloatType type;
  std::vector<std::byte> values;
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};

Weight RandomWeight(const FourBitFormat& format, FloatType type) {
  Weight weight{format, type, {}, {}, {}};
  weight.packed.resize(PackedBytes(kElements).count());
  weight.absmax.resize(BlockCount(kElements, format.block));
  // Any codes and scales of a normal weight are as good as its own: random codes, dequantized, are random values.
  std::mt19937 random(1);
  for (uint8_t& byte : weight.packed) byte = static_cast<uint8_t>(random());
  for (float& scale : weight.absmax) scale = std::uniform_real_distribution<float>(0.03f, 0.09f)(random);
  weight.values.resize(kElements * FloatSize(type).count());
  Dequantize4Bit(format, weight.packed, weight.absmax, kElements, type, weight.values.data());
  return weight;
}

// Calls work(first element, count) for `threads` equal parts.
template <class Work>
void InParts(int threads, const Work& work) {
  const uint64_t part = kElements / static_cast<uint64_t>(threads);  // a multiple of every block size
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { work(static_cast<uint64_t>(t) * part, part); });
  work(0, part);
}

void Quantize(benchmark::State& state, const FourBitFormat& format, FloatType type, int threads) {
  Weight weight = RandomWeight(format, type);
  for (auto _ : state) {
    InParts(threads, [&](uint64_t begin, uint64_t count) {
      Quantize4Bit(format, Dialect::kCpu, type, weight.values.data() + begin * FloatSize(type).count(), count,
                   std::span(weight.packed).subspan(begin / 2, count / 2),
                   std::span(weight.absmax).subspan(begin / format.block, count / format.block));
    });
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * weight.values.size()));
}

void Dequantize(benchmark::State& state, const FourBitFormat& format, FloatType type, int threads) {
  Weight weight = RandomWeight(format, type);
  for (auto _ : state) {
    InParts(threads, [&](uint64_t begin, uint64_t count) {
      Dequantize4Bit(format, std::span(weight.packed).subspan(begin / 2, count / 2),
                     std::span(weight.absmax).subspan(begin / format.block, count / format.block), count, type,
                     weight.values.data() + begin * FloatSize(type).count());
    });
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * weight.values.size()));
}

void Register(const FourBitFormat& format, FloatType type, const char* element, int threads) {
  const std::string name = "/" + std::string(QuantTypeName(format.type)) + "/" + element + "/" +
                           std::to_string(format.block) + "/threads:" + std::to_string(threads);
  for (const auto& [operation, function] : {std::pair{"Quantize", &Quantize}, std::pair{"Dequantize", &Dequantize}}) {
    benchmark::RegisterBenchmark((operation + name).c_str(), function, format, type, threads)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const QuantType type : {QuantType::kNf4, QuantType::kFp4}) {
    for (const uint32_t block : {32u, 64u, 256u, 4096u}) {
      Register({type, block}, FloatType::kBFloat16, "bfloat16", 1);
      Register({type, block}, FloatType::kBFloat16, "bfloat16", 2);
      Register({type, block}, FloatType::kFloat16, "float16", 1);
      Register({type, block}, FloatType::kFloat32, "float32", 1);
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
