// bench/threads.h - the workloads of several threads, and what is reported of them: all pairs of all threads in a window of
// wall time during which all of them run.
//
// The counter pairs_per_second is the total; a run's "time" is that of one pair in one thread.
#pragma once

#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "pairs.h"

namespace gpuledger {

inline constexpr std::chrono::milliseconds kWindow{250};

// One window of `threads` threads. Each calls Ready() when its memory is there, works while running(), calls
// Done(pairs) and cleans up. The clock is read by the last thread to arrive, before it lets the others go: a thread that
// waits for a core counts.
class Window {
 public:
  explicit Window(int threads) : begin_(threads + 1, Stamp{&began_}), end_(threads, Stamp{&ended_}) {}

  void Ready() { begin_.arrive_and_wait(); }
  [[nodiscard]] bool running() const { return !stop_.load(std::memory_order_relaxed); }
  void Done(uint64_t pairs) {
    pairs_ += pairs;
    end_.arrive_and_wait();
  }
  // On the thread that made it: lets them run for kWindow.
  void Watch() {
    Ready();
    std::this_thread::sleep_for(kWindow);
    stop_ = true;
  }
  // When the threads have been joined.
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(ended_ - began_).count(); }
  [[nodiscard]] double pairs_per_second() const { return static_cast<double>(pairs_.load()) / seconds(); }

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Stamp {
    Time* time;
    void operator()() noexcept { *time = std::chrono::steady_clock::now(); }
  };
  Time began_, ended_;
  std::barrier<Stamp> begin_, end_;
  std::atomic<uint64_t> pairs_ = 0;
  alignas(128) std::atomic<bool> stop_ = false;
};

// body(window, thread) on `threads` threads, once an iteration.
template <class Body>
void RunWindows(benchmark::State& state, int threads, const Body& body) {
  double pairs_per_second = 0;
  for (auto _ : state) {
    Window window(threads);
    std::vector<std::jthread> all;
    for (int i = 0; i < threads; ++i) all.emplace_back([&, i] { body(window, i); });
    window.Watch();
    all.clear();
    pairs_per_second = window.pairs_per_second();
    state.SetIterationTime(threads / pairs_per_second);
  }
  state.counters["pairs_per_second"] = pairs_per_second;
}

// Works in small batches, so that the stop flag costs nothing that shows.
template <class Step>
uint64_t StepsWhileRunning(const Window& window, const Step& step) {
  uint64_t pairs = 0;
  for (; window.running(); pairs += 16) {
    for (int i = 0; i < 16; ++i) step();
  }
  return pairs;
}

// 64 blocks of 64 KiB live in each thread, on its own stream; each step frees the oldest.
template <class Source>
void FixedOnThreads(benchmark::State& state) {
  Source source;
  RunWindows(state, static_cast<int>(state.range(0)), [&](Window& window, int thread) {
    constexpr uint64_t kSize = 64 << 10;
    typename Source::Lane lane(source, thread);
    std::array<decltype(lane.Allocate(1)), 64> live;
    for (auto& block : live) block = lane.Allocate(kSize);
    size_t next = 0;
    window.Ready();
    window.Done(StepsWhileRunning(window, [&] {
      auto& block = live[next++ % live.size()];
      lane.Free(block, kSize);
      block = lane.Allocate(kSize);
    }));
    for (const auto& block : live) lane.Free(block, kSize);
  });
}

// 1,000 blocks of random sizes live in each thread, on its own stream.
template <class Source>
void RandomOnThreads(benchmark::State& state) {
  Source source;
  RunWindows(state, static_cast<int>(state.range(0)), [&](Window& window, int thread) {
    typename Source::Lane lane(source, thread);
    RandomLive live(lane, 1000, thread);
    for (int i = 0; i < (1 << 14); ++i) live.Step();
    window.Ready();
    window.Done(StepsWhileRunning(window, [&] { live.Step(); }));
  });
}

// A bounded queue of one producer and one consumer; who has to wait gives the core away.
template <class T>
class Handover {
 public:
  [[nodiscard]] bool Push(const T& item) {
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) == items_.size()) return false;
    items_[tail % items_.size()] = item;
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }
  [[nodiscard]] bool Pop(T& item) {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_.load(std::memory_order_acquire)) return false;
    item = items_[head % items_.size()];
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

 private:
  std::array<T, 512> items_;
  alignas(128) std::atomic<uint64_t> head_ = 0;
  alignas(128) std::atomic<uint64_t> tail_ = 0;
};

// Half of the threads allocate, random sizes up to 2 MiB, each on its own stream; each has a partner that frees, as the
// threads of a backward pass free what the forward pass has kept. A pair counts when it is freed.
template <class Source>
void FreedOnAnotherThread(benchmark::State& state) {
  using Block = decltype(std::declval<typename Source::Lane&>().Allocate(1));
  struct Item {
    Block block{};
    uint64_t size = 0;
  };
  const int threads = static_cast<int>(state.range(0));
  Source source;
  std::vector<std::unique_ptr<Handover<Item>>> queues;
  for (int i = 0; i < threads / 2; ++i) queues.push_back(std::make_unique<Handover<Item>>());
  RunWindows(state, threads, [&](Window& window, int thread) {
    typename Source::Lane lane(source, thread);
    Handover<Item>& queue = *queues[static_cast<size_t>(thread / 2)];
    if (thread % 2 == 0) {
      size_t next = static_cast<size_t>(thread) * 4099;
      window.Ready();
      while (window.running()) {
        const uint64_t size = RandomSteps()[next++ % (1 << 16)].second;
        const Item item{lane.Allocate(size), size};
        bool pushed = queue.Push(item);
        for (; !pushed && window.running(); pushed = queue.Push(item)) std::this_thread::yield();
        if (!pushed) lane.Free(item.block, item.size);
      }
      window.Done(0);
      return;
    }
    Item item;
    uint64_t pairs = 0;
    window.Ready();
    while (window.running()) {
      if (!queue.Pop(item)) {
        std::this_thread::yield();
        continue;
      }
      lane.Free(item.block, item.size);
      ++pairs;
    }
    window.Done(pairs);
    while (queue.Pop(item)) lane.Free(item.block, item.size);
  });
}

template <class Source>
void RegisterThreads(const std::string& name) {
  const auto add = [&](const std::string& workload, auto* function, const std::vector<int64_t>& threads) {
    auto* added = benchmark::RegisterBenchmark((workload + "/" + name).c_str(), function)->ArgName("threads");
    for (const int64_t count : threads) added->Arg(count);
    added->UseManualTime()->Iterations(1);
  };
  add("threads_fixed", FixedOnThreads<Source>, {1, 2, 4, 16});
  add("threads_random", RandomOnThreads<Source>, {1, 2, 4, 16});
  add("threads_handover", FreedOnAnotherThread<Source>, {2, 4, 16});
}

}  // namespace gpuledger
