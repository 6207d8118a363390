// The loop that recorders are compared on: allocate and free, some calls deep. Nanoseconds a pair on stdout.
//
//   record_loop malloc PAIRS      malloc and free, for heaptrack and memray to follow
//   record_loop gpuledger PAIRS   a CachingAllocator over the fake upstream; GPULEDGER_TRACE and GPULEDGER_STACKS as ever
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/owner.h"

namespace {

template <class Pair>
[[gnu::noinline]] void Deep(int depth, const Pair& pair) {
  if (depth == 0) {
    pair();
  } else {
    Deep(depth - 1, pair);
  }
  asm volatile("" ::: "memory");
}

template <class Pair>
double NanosecondsAPair(long pairs, const Pair& pair) {
  const auto begin = std::chrono::steady_clock::now();
  for (long i = 0; i < pairs; ++i) Deep(10, pair);
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / static_cast<double>(pairs);
}

}  // namespace

extern "C" [[gnu::visibility("default")]] double record_loop_malloc(long pairs) {
  return NanosecondsAPair(pairs, [] {
    void* const block = std::malloc(512);
    asm volatile("" : : "r"(block) : "memory");
    std::free(block);
  });
}

int main(int count, char** words) {
  const long pairs = count == 3 ? std::atol(words[2]) : 0;
  if (pairs <= 0) return std::fputs("usage: record_loop malloc|gpuledger PAIRS\n", stderr), 2;
  if (std::strcmp(words[1], "malloc") == 0) {
    std::printf("%.1f\n", record_loop_malloc(pairs));
    return 0;
  }
  gpuledger::FakeUpstream upstream;
  gpuledger::CachingAllocator allocator(upstream, gpuledger::AllocatorOptions{});
  const gpuledger::Stream stream = gpuledger::Stream::Default(upstream.device());
  std::printf("%.1f\n", NanosecondsAPair(pairs, [&] {
                allocator.Free(*allocator.AllocateRaw(gpuledger::Bytes(512u), stream, gpuledger::CurrentSite()));
              }));
}
