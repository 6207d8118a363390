// What recording costs: nanoseconds an entry in the thread that allocates, and bytes an entry on the disk.
#include <benchmark/benchmark.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>

#include <fmt/format.h>

#include "allocation_trace.h"
#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/owner.h"
#include "gpuledger/recorder.h"
#include "gpuledger/sites.h"

namespace gpuledger {
namespace {

std::string TraceFile() {
  const char* const folder = std::getenv("TMPDIR");
  return fmt::format("{}/gpuledger-trace-bench-{}.trace", folder == nullptr ? "/tmp" : folder, getpid());
}

std::unique_ptr<Recorder> recorder;

// Entries as an allocator writes them: an allocation, its free, and its completion in the same instant.
void BM_Write(benchmark::State& state) {
  if (state.thread_index() == 0) {
    unlink(TraceFile().c_str());
    recorder = *Recorder::Start({TraceFile(), 256_MiB});
  }
  Record record;
  record.thread = ThisThread();
  record.owner = InternOwner("model/layers.3.mlp.up_proj.weight");
  record.ledger = LedgerId(1);
  uint64_t time = 1'000'000'000, id = uint64_t{record.thread.value()} << 32, number = 0;
  for (auto _ : state) {
    time += 137 + number % 64;
    record.time = TimePoint(time);
    record.allocation = AllocationId(++id);
    record.requested = Bytes(512u + number % 7919 * 16);
    record.charged = SizeClass::For(record.requested).charged();
    record.address = 0x7f0000000000 + id % 977 * 4096;
    record.kind = RecordKind::kAllocate, record.sequence = ++number;
    recorder->Write(record);
    record.time = TimePoint(time += 60);
    record.kind = RecordKind::kFreeRequested, record.sequence = ++number;
    recorder->Write(record);
    record.kind = RecordKind::kFreeCompleted, record.sequence = ++number;
    recorder->Write(record);
  }
  state.SetItemsProcessed(state.iterations() * 3);
  state.counters["ns_per_entry"] = benchmark::Counter(static_cast<double>(state.iterations()) * 3e-9,
                                                      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  if (state.thread_index() == 0) {
    recorder.reset();
    unlink(TraceFile().c_str());
  }
}
BENCHMARK(BM_Write)->Threads(1)->Threads(2)->Threads(4)->UseRealTime();

// A whole pair of the allocator, with and without a recorder behind it.
void BM_Pair(benchmark::State& state) {
  FakeUpstream upstream;
  std::unique_ptr<Recorder> sink;
  if (state.range(0) != 0) {
    unlink(TraceFile().c_str());
    sink = *Recorder::Start({TraceFile(), 256_MiB});
  }
  {
    CachingAllocator allocator(upstream, AllocatorOptions{}, sink.get());
    const Stream stream = Stream::Default(upstream.device());
    for (auto _ : state) allocator.Free(*allocator.AllocateRaw(512_B, stream));
  }
  sink.reset();
  unlink(TraceFile().c_str());
}
BENCHMARK(BM_Pair)->ArgName("recorded")->Arg(0)->Arg(1);

[[gnu::noinline]] void AtDepth(benchmark::State& state, int depth) {
  if (depth == 0) {
    for (auto _ : state) benchmark::DoNotOptimize(TakeSite());
  } else {
    AtDepth(state, depth - 1);
  }
  benchmark::ClobberMemory();
}
void BM_TakeSite(benchmark::State& state) {
  SetStacks(true, false);
  AtDepth(state, static_cast<int>(state.range(0)));
  SetStacks(false, false);
}
BENCHMARK(BM_TakeSite)->ArgName("frames")->Arg(10)->Arg(30);

// The real traces, through an allocator, in their own time.
void BM_BytesOnDisk(benchmark::State& state, const std::string& name) {
  const char* const folder = std::getenv("GPULEDGER_TRACES");
  const auto trace = replay::ReadAllocationTrace(fmt::format("{}/{}.trace.gz", folder == nullptr ? "bench/traces" : folder, name));
  if (!trace.ok()) return state.SkipWithError(std::string(trace.status().message()).c_str());
  for (auto _ : state) {
    unlink(TraceFile().c_str());
    auto sink = *Recorder::Start({TraceFile(), Bytes(uint64_t{1} << 40)});
    FakeOptions large;
    large.total = 1_TiB;
    FakeUpstream upstream(large);
    CachingAllocator allocator(upstream, AllocatorOptions{}, sink.get());
    std::vector<DevicePtr> blocks(trace->allocations.size(), DevicePtr::Null(upstream.device()));
    uint64_t now_us = 0;
    for (const replay::Row& row : trace->rows) {
      upstream.Advance((row.time_us - now_us) * 1000);
      now_us = row.time_us;
      const replay::Allocation& a = trace->allocations[row.allocation];
      if (row.op == replay::Op::kAllocate) {
        const uintptr_t raw = a.stream == 0 ? 0 : 16 * (a.stream + 1);
        blocks[row.allocation] = *allocator.AllocateRaw(a.size, Stream(upstream.device(), reinterpret_cast<CUstream_st*>(raw)));
      } else if (row.op == replay::Op::kFree) {
        allocator.Free(blocks[row.allocation]);
        blocks[row.allocation] = DevicePtr::Null(upstream.device());
      }
    }
    for (const DevicePtr block : blocks) allocator.Free(block);
    sink->End();
    struct stat found{};
    stat(TraceFile().c_str(), &found);
    state.counters["bytes_per_event"] = static_cast<double>(found.st_blocks) * 512 / static_cast<double>(trace->rows.size());
    state.counters["lost"] = static_cast<double>(sink->lost());
    unlink(TraceFile().c_str());
  }
}
BENCHMARK_CAPTURE(BM_BytesOnDisk, finetune, "finetune")->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_BytesOnDisk, generate, "generate")->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_BytesOnDisk, moe, "moe")->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_BytesOnDisk, streams, "streams")->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gpuledger
