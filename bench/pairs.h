// bench/pairs.h - the workloads of one thread that every memory source runs alike.
//
// A source is default-constructible and has a Lane: made from the source and a thread's number, on that thread, with
// Allocate(size) -> T and Free(T, size), T default-constructible. Memory is not touched: what is measured is the
// bookkeeping. Workloads of several threads: bench/threads.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

namespace gpuledger {

// One size, allocated and freed at once: the hit of a cache.
template <class Source>
void Pair(benchmark::State& state) {
  Source source;
  typename Source::Lane lane(source, 0);
  const auto size = static_cast<uint64_t>(state.range(0));
  lane.Free(lane.Allocate(size), size);
  for (auto _ : state) {
    auto block = lane.Allocate(size);
    benchmark::DoNotOptimize(block);
    lane.Free(block, size);
  }
}

// Random sizes, 512 B to 2 MiB with equal weight for each octave; the same steps for every source.
inline const std::vector<std::pair<uint32_t, uint32_t>>& RandomSteps() {
  static const auto& steps = *[] {
    auto* made = new std::vector<std::pair<uint32_t, uint32_t>>(1 << 16);
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> octaves(9.0, 21.0);
    for (auto& [number, size] : *made) {
      number = static_cast<uint32_t>(random());
      size = static_cast<uint32_t>(std::exp2(octaves(random)));
    }
    return made;
  }();
  return steps;
}

// `live` blocks of random sizes; each step frees a random one and allocates another.
template <class Lane>
class RandomLive {
 public:
  // Threads start at different places of the one list of steps.
  RandomLive(Lane& lane, size_t live, int thread) : lane_(lane), next_(static_cast<size_t>(thread) * 4099), live_(live) {
    for (auto& [block, size] : live_) {
      size = NextStep().second;
      block = lane_.Allocate(size);
    }
  }
  ~RandomLive() {
    for (const auto& [block, size] : live_) lane_.Free(block, size);
  }
  RandomLive(const RandomLive&) = delete;
  RandomLive& operator=(const RandomLive&) = delete;

  void Step() {
    const auto [number, size] = NextStep();
    auto& slot = live_[(uint64_t{number} * live_.size()) >> 32];
    lane_.Free(slot.first, slot.second);
    slot = {lane_.Allocate(size), size};
  }

 private:
  std::pair<uint32_t, uint32_t> NextStep() { return RandomSteps()[next_++ % (1 << 16)]; }

  Lane& lane_;
  size_t next_;
  std::vector<std::pair<decltype(std::declval<Lane&>().Allocate(1)), uint64_t>> live_;
};

template <class Source>
void RandomPair(benchmark::State& state) {
  Source source;
  typename Source::Lane lane(source, 0);
  RandomLive live(lane, static_cast<size_t>(state.range(0)), 0);
  for (int i = 0; i < (1 << 16); ++i) live.Step();  // memory has grown to what the steps need
  for (auto _ : state) live.Step();
}

template <class Source>
void RegisterPairs(const std::string& name) {
  benchmark::RegisterBenchmark(("pair/" + name).c_str(), Pair<Source>)->Arg(512)->Arg(64 << 10)->Arg(2 << 20);
  benchmark::RegisterBenchmark(("random/" + name).c_str(), RandomPair<Source>)->ArgName("live")->Arg(1000)->Arg(10000);
}

}  // namespace gpuledger
