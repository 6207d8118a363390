// bench/pairs.h - the two workloads that every memory source runs alike.
//
// A source has Allocate(size) -> T and Free(T, size), T default-constructible. Memory is not touched: what is measured
// is the bookkeeping.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>

#include <benchmark/benchmark.h>

namespace gpuledger {

// One size, allocated and freed at once: the hit of a cache.
template <class Source>
void Pair(benchmark::State& state) {
  Source source;
  const auto size = static_cast<uint64_t>(state.range(0));
  source.Free(source.Allocate(size), size);
  for (auto _ : state) {
    auto block = source.Allocate(size);
    benchmark::DoNotOptimize(block);
    source.Free(block, size);
  }
}

// 1000 live blocks of random sizes, 512 B to 2 MiB with equal weight for each octave; each step frees a random one and
// allocates another. The same steps for every source.
template <class Source>
void RandomPair(benchmark::State& state) {
  struct Step {
    uint64_t victim;
    uint64_t size;
  };
  constexpr size_t kLive = 1000, kSteps = 1 << 16;
  static const auto* const steps = [] {
    auto* made = new std::array<Step, kSteps>;
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> octaves(9.0, 21.0);
    for (Step& step : *made) step = {random() % kLive, static_cast<uint64_t>(std::exp2(octaves(random)))};
    return made;
  }();

  Source source;
  struct Live {
    decltype(source.Allocate(1)) block{};
    uint64_t size = 0;
  };
  std::array<Live, kLive> live;
  for (size_t i = 0; i < kLive; ++i) live[i] = {source.Allocate((*steps)[i].size), (*steps)[i].size};
  size_t next = 0;
  for (auto _ : state) {
    const Step& step = (*steps)[next];
    next = (next + 1) % kSteps;
    Live& slot = live[step.victim];
    source.Free(slot.block, slot.size);
    slot = {source.Allocate(step.size), step.size};
  }
  for (const Live& slot : live) source.Free(slot.block, slot.size);
}

template <class Source>
void RegisterPairs(const std::string& name) {
  benchmark::RegisterBenchmark(("pair/" + name).c_str(), Pair<Source>)->Arg(512)->Arg(64 << 10)->Arg(2 << 20);
  benchmark::RegisterBenchmark(("random/" + name).c_str(), RandomPair<Source>);
}

}  // namespace gpuledger
