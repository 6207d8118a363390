// A trace for `gpuledger replay`: refused with a sentence that names the line, or rows that an allocator can follow. An input
// is the file as it is if its first byte is even, and else the rows, which are compressed here.
#include <zlib.h>

#include <algorithm>
#include <vector>

#include "allocation_trace.h"
#include "fuzz_files.h"

using namespace gpuledger;
using replay::Op;

namespace {

std::string Gzip(std::string_view text) {
  z_stream stream = {};
  Ensure(::deflateInit2(&stream, Z_NO_COMPRESSION, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(::deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  Ensure(::deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

void EnsureItCanBeFollowed(const replay::AllocationTrace& trace) {
  enum class State { kNone, kLive, kFreed, kComplete };
  std::vector<State> states(trace.allocations.size(), State::kNone);
  std::vector<size_t> freed_at(states.size());
  Bytes live, peak;
  uint64_t time = 0;
  Ensure(!trace.rows.empty());
  for (size_t i = 0; i < trace.rows.size(); ++i) {
    const replay::Row& row = trace.rows[i];
    Ensure(row.time_us >= time && row.allocation < states.size());
    time = row.time_us;
    const replay::Allocation& allocation = trace.allocations[row.allocation];
    State& state = states[row.allocation];
    Ensure(allocation.stream < trace.streams && !allocation.size.is_zero());
    switch (row.op) {
      case Op::kAllocate:
        Ensure(std::exchange(state, State::kLive) == State::kNone);
        live += allocation.size;
        peak = std::max(peak, live);
        break;
      case Op::kFree:
        Ensure(std::exchange(state, State::kFreed) == State::kLive);
        live -= allocation.size;
        freed_at[row.allocation] = i;
        break;
      case Op::kComplete:
        Ensure(std::exchange(state, State::kComplete) == State::kFreed);
        Ensure(allocation.used_elsewhere == (i != freed_at[row.allocation] + 1));
        break;
    }
  }
  Ensure(peak == trace.peak_requested && std::count(states.begin(), states.end(), State::kNone) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest = TextOf(data + 1, size - 1);
  const MemoryFile file(data[0] % 2 == 0 ? std::string(rest) : Gzip(rest));
  const absl::StatusOr<replay::AllocationTrace> trace = replay::ReadAllocationTrace(file.path());
  if (trace.ok()) {
    EnsureItCanBeFollowed(*trace);
  } else {
    const std::string said(trace.status().message());
    Ensure(trace.status().code() == absl::StatusCode::kInvalidArgument && said.size() < 2000);
    Ensure(said.find(", line ") != said.npos);
  }
  return 0;
}
