// bench/usage.h - what a question costs while other threads allocate and free.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "pairs.h"

namespace gpuledger {

// source.Ask() while state.range(0) other threads work, each on a stream and on a size of its own. The "time" is the median
// of batches of 64 questions, which a batch in which the reader had to give its core away does not move. Batches are taken at
// even distances in time: back to back, the quick ones of a moment without writers would outnumber all others.
template <class Source>
void AskWhileOthersWork(benchmark::State& state) {
  using Steady = std::chrono::steady_clock;
  constexpr int kBatch = 64;
  Source source;
  typename Source::Lane lane(source, 0);
  auto block = lane.Allocate(4096);
  const auto writers = static_cast<int>(state.range(0));
  std::atomic<bool> stop = false;
  std::barrier ready(writers + 1);
  std::vector<std::jthread> threads;
  for (int i = 1; i <= writers; ++i) {
    threads.emplace_back([&, i] {
      typename Source::Lane own(source, i);
      const uint64_t size = uint64_t{512} << (i % 12);
      ready.arrive_and_wait();
      while (!stop.load(std::memory_order_relaxed)) own.Free(own.Allocate(size), size);
    });
  }
  ready.arrive_and_wait();
  std::vector<double> batches;
  for (auto _ : state) {
    const auto until = Steady::now() + std::chrono::milliseconds(250);
    while (Steady::now() < until) {
      const auto begin = Steady::now();
      for (int i = 0; i < kBatch; ++i) source.Ask();
      const auto end = Steady::now();
      batches.push_back(std::chrono::duration<double>(end - begin).count() / kBatch);
      while (Steady::now() < end + std::chrono::microseconds(50)) {
      }
    }
    const auto middle = batches.begin() + static_cast<ptrdiff_t>(batches.size() / 2);
    std::nth_element(batches.begin(), middle, batches.end());
    const double median = *middle;
    const auto late = batches.begin() + static_cast<ptrdiff_t>(batches.size() * 9 / 10);
    std::nth_element(batches.begin(), late, batches.end());
    state.counters["ns_90_percent"] = *late * 1e9;
    state.SetIterationTime(median);
  }
  stop = true;
  threads.clear();
  lane.Free(block, 4096);
}

template <class Source>
void RegisterUsage(const std::string& name) {
  benchmark::RegisterBenchmark(("usage/" + name).c_str(), AskWhileOthersWork<Source>)
      ->ArgName("writers")->Arg(0)->Arg(1)->Arg(2)->Arg(4)->Arg(16)->UseManualTime()->Iterations(1);
}

}  // namespace gpuledger
