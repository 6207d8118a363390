// The ledger alone: a charge and its credit, through the public calls (each takes the time and finds its shard), by 1 to
// 4 threads; and what it costs to ask what an owner holds while others write.
#include <benchmark/benchmark.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/ledger.h"

namespace gpuledger {
namespace {

const DeviceId kDevice{0};

// So that a pair is the ledger's time and not the system clock's.
class StillClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(1); }
};

Charge Pay(Ledger& ledger, OwnerId owner, Bytes size) {
  return ledger.Debit({{owner, Role::kActivation}, size, size, Stream::Default(kDevice), DevicePtr(kDevice, 512)});
}

// Every thread has room: the peak was made before.
struct Shared {
  StillClock clock;
  Ledger ledger{kDevice, clock};
  explicit Shared(int owners) {
    std::vector<Charge> peak;
    for (int i = 0; i < owners; ++i) peak.push_back(Pay(ledger, InternOwner("bench/thread." + std::to_string(i)), 64_MiB));
  }
};

void Pair(benchmark::State& state) {
  static Shared& shared = *new Shared(16);
  const OwnerId owner = InternOwner("bench/thread." + std::to_string(state.thread_index()));
  for (auto _ : state) const Charge charge = Pay(shared.ledger, owner, 4096_B);
}
BENCHMARK(Pair)->Name("ledger/pair")->Threads(1)->Threads(2)->Threads(4)->UseRealTime();

void Usage(benchmark::State& state) {
  Shared shared(17);
  const OwnerId owner = InternOwner("bench/thread.16");
  const Charge charge = Pay(shared.ledger, owner, 4096_B);
  std::atomic<bool> stop = false;
  std::vector<std::thread> writers;
  for (int64_t i = 0; i < state.range(0); ++i) {
    writers.emplace_back([&, i] {
      const OwnerId mine = InternOwner("bench/thread." + std::to_string(i));
      while (!stop.load(std::memory_order_relaxed)) const Charge c = Pay(shared.ledger, mine, 4096_B);
    });
  }
  for (auto _ : state) benchmark::DoNotOptimize(shared.ledger.usage(owner));
  stop = true;
  for (std::thread& writer : writers) writer.join();
}
BENCHMARK(Usage)->Name("ledger/usage")->ArgName("writers")->Arg(0)->Arg(1)->Arg(2)->Arg(4)->Arg(16);

}  // namespace
}  // namespace gpuledger
