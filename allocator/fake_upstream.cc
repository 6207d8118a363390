#include "gpuledger/fake_upstream.h"

#include <array>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "held_fences.h"
#include "sync.h"
#include "upstream_books.h"

namespace gpuledger {
namespace {

Capabilities CapabilitiesOf(const FakeOptions& options) {
  return {.aliasing = options.aliasing && options.mapping, .host_accessible = false, .mapping = options.mapping};
}

// Addresses run from here to the end, once; the gap between two ranges shows who runs over the end of one.
constexpr uint64_t kFirstAddress = uint64_t{1} << 40;
constexpr uint64_t kLastAddress = uint64_t{1} << 62;

// Growth in thousandths at 2, 32 and 128 MiB: the H100's figures of the table, each the middle of its span.
struct Growth {
  uint64_t at_32, at_128;
};

uint64_t Grown(uint64_t cost, Bytes size, Growth growth) {
  const auto between = [size](uint64_t low_mib, uint64_t low, uint64_t high_mib, uint64_t high) {
    const double mib = static_cast<double>(size.count()) / (1 << 20);
    return static_cast<double>(low) +
           (mib - static_cast<double>(low_mib)) * static_cast<double>(high - low) / static_cast<double>(high_mib - low_mib);
  };
  double thousandths = 1000;
  if (size > 32_MiB) {
    thousandths = between(32, growth.at_32, 128, growth.at_128);
  } else if (size > 2_MiB) {
    thousandths = between(2, 1000, 32, growth.at_32);
  }
  return static_cast<uint64_t>(static_cast<double>(cost) * thousandths / 1000);
}

}  // namespace

uint64_t FakeCosts::of(UpstreamCall call, Bytes size) const {
  switch (call) {
    case UpstreamCall::kReserve: return reserve;
    case UpstreamCall::kUnreserve: return unreserve;
    case UpstreamCall::kCreate: return Grown(create, size, {1310, 1450});
    case UpstreamCall::kRelease: return Grown(release, size, {2380, 7290});
    case UpstreamCall::kMap: return Grown(map, size, {1000, 1150});
    case UpstreamCall::kUnmap: return unmap;
    case UpstreamCall::kRecordFence: return record_fence;
    case UpstreamCall::kPollFence: return poll_fence;
    case UpstreamCall::kWaitFence: return wait_fence;
    case UpstreamCall::kStreamWait: return stream_wait;
    case UpstreamCall::kSynchronize: return synchronize;
  }
  Die("FakeCosts: no such call");
}

struct FakeUpstream::State {
  explicit State(const FakeOptions& o)
      : options(o), books(o.device, o.total, o.granularity, CapabilitiesOf(o)), hold(o.hold_fences) {}

  // Every call begins here: it is counted and takes its time, misused or not, and then fails if a fault is due.
  absl::Status Begin(UpstreamCall call, absl::Status misuse, Bytes size = Bytes()) GPULEDGER_REQUIRES(mutex);

  struct Fault {
    uint64_t call;  // fails when the count of its kind reaches this
    absl::Status status;
  };

  mutable Mutex mutex;
  const FakeOptions options;
  UpstreamBooks books GPULEDGER_GUARDED_BY(mutex);
  bool hold GPULEDGER_GUARDED_BY(mutex);
  uint64_t now GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t driver GPULEDGER_GUARDED_BY(mutex) = 0;
  uint64_t next_address GPULEDGER_GUARDED_BY(mutex) = kFirstAddress;
  std::array<uint64_t, kUpstreamCallCount> calls GPULEDGER_GUARDED_BY(mutex) = {};
  std::array<std::vector<Fault>, kUpstreamCallCount> faults GPULEDGER_GUARDED_BY(mutex);
  HeldFences held GPULEDGER_GUARDED_BY(mutex);
};

absl::Status FakeUpstream::State::Begin(UpstreamCall call, absl::Status misuse, Bytes size) {
  const uint64_t cost = options.costs.of(call, size);
  now += cost;
  driver += cost;
  const uint64_t count = ++calls[static_cast<size_t>(call)];
  std::vector<Fault>& due = faults[static_cast<size_t>(call)];
  absl::Status status;
  for (auto fault = due.begin(); fault != due.end();) {
    if (fault->call != count) {
      ++fault;
      continue;
    }
    status = std::move(fault->status);
    fault = due.erase(fault);
  }
  return misuse.ok() ? status : misuse;
}

FakeUpstream::FakeUpstream(const FakeOptions& options) : state_(std::make_unique<State>(options)) {
  if (options.granularity.is_zero()) Die("FakeUpstream: the granularity is zero");
}
FakeUpstream::~FakeUpstream() = default;

TimePoint FakeUpstream::now() const {
  MutexLock lock(state_->mutex);
  return TimePoint(state_->now);
}

DeviceId FakeUpstream::device() const { return state_->options.device; }
Bytes FakeUpstream::granularity() const { return state_->options.granularity; }
Capabilities FakeUpstream::capabilities() const { return CapabilitiesOf(state_->options); }

void FakeUpstream::VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const {
  MutexLock lock(state_->mutex);
  state_->books.VisitNotes(visit);
}

MemoryInfo FakeUpstream::memory_info() const {
  MutexLock lock(state_->mutex);
  return state_->books.memory_info();
}

absl::StatusOr<Range> FakeUpstream::Reserve(Bytes size) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kReserve, s.books.CheckReserve(size));
  if (!status.ok()) return status;
  const uint64_t unit = s.options.granularity.count();
  const uint64_t base = (s.next_address + unit - 1) / unit * unit;
  if (base > kLastAddress || size.count() > kLastAddress - base) {
    return absl::ResourceExhaustedError(fmt::format("Reserve: no addresses for {}", ToString(size)));
  }
  s.next_address = base + size.count() + unit;
  const Range range{DevicePtr(s.options.device, base), size};
  s.books.AddRange(range);
  return range;
}

absl::Status FakeUpstream::Unreserve(Range range) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kUnreserve, s.books.CheckUnreserve(range));
  if (status.ok()) s.books.RemoveRange(range);
  return status;
}

absl::StatusOr<HandleId> FakeUpstream::CreateHandle(Bytes size) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kCreate, s.books.CheckCreate(size), size);
  if (!status.ok()) return status;
  return s.books.AddHandle(size, 0);
}

absl::Status FakeUpstream::ReleaseHandle(HandleId handle) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kRelease, s.books.CheckRelease(handle), s.books.SizeOf(handle));
  if (status.ok()) s.books.RemoveHandle(handle);
  return status;
}

absl::Status FakeUpstream::Map(DevicePtr address, HandleId handle) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kMap, s.books.CheckMap(address, handle), s.books.SizeOf(handle));
  if (status.ok()) s.books.AddMapping(address, handle);
  return status;
}

absl::Status FakeUpstream::Unmap(DevicePtr address, HandleId handle) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kUnmap, s.books.CheckUnmap(address, handle));
  if (status.ok()) s.books.RemoveMapping(address, handle);
  return status;
}

absl::StatusOr<FenceId> FakeUpstream::RecordFence(Stream stream) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kRecordFence, s.books.CheckStream(stream));
  if (!status.ok()) return status;
  const FenceId fence = s.books.AddFence(stream);
  if (s.hold) s.held.Add({fence, stream});
  return fence;
}

absl::StatusOr<bool> FakeUpstream::PollFence(FenceId fence) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  const absl::StatusOr<Stream> stream = s.books.FenceStream(fence);
  absl::Status status = s.Begin(UpstreamCall::kPollFence, stream.status());
  if (!status.ok()) return status;
  return s.held.Passed({fence, *stream});
}

absl::Status FakeUpstream::WaitFence(FenceId fence) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  const absl::StatusOr<Stream> stream = s.books.FenceStream(fence);
  absl::Status status = s.Begin(UpstreamCall::kWaitFence, stream.status());
  if (status.ok()) s.held.Pass({fence, *stream});
  return status;
}

absl::Status FakeUpstream::MakeStreamWait(Stream stream, FenceId fence) {
  State& s = *state_;
  MutexLock lock(s.mutex);
  const absl::StatusOr<Stream> recorded_on = s.books.FenceStream(fence);
  absl::Status misuse = recorded_on.ok() ? s.books.CheckStream(stream) : recorded_on.status();
  absl::Status status = s.Begin(UpstreamCall::kStreamWait, std::move(misuse));
  if (status.ok()) s.held.MakeWait(stream, {fence, *recorded_on});
  return status;
}

void FakeUpstream::DropFence(FenceId fence) {
  MutexLock lock(state_->mutex);
  state_->books.RemoveFence(fence);  // a held one stays held: the work it stands for is still to be done
}

absl::Status FakeUpstream::Synchronize() {
  State& s = *state_;
  MutexLock lock(s.mutex);
  absl::Status status = s.Begin(UpstreamCall::kSynchronize, absl::OkStatus());
  if (status.ok()) s.held.PassAll();
  return status;
}

void FakeUpstream::Advance(uint64_t nanoseconds) {
  MutexLock lock(state_->mutex);
  state_->now += nanoseconds;
}

void FakeUpstream::FailNext(UpstreamCall call, absl::Status status, uint64_t nth) {
  if (status.ok() || nth == 0) Die("FakeUpstream::FailNext: a fault has an error, and the next call is number 1");
  MutexLock lock(state_->mutex);
  const uint64_t count = state_->calls[static_cast<size_t>(call)] + nth;
  state_->faults[static_cast<size_t>(call)].push_back({count, std::move(status)});
}

void FakeUpstream::ClearFaults() {
  MutexLock lock(state_->mutex);
  for (auto& faults : state_->faults) faults.clear();
}

void FakeUpstream::HoldFences(bool hold) {
  MutexLock lock(state_->mutex);
  state_->hold = hold;
  if (!hold) state_->held.PassAll();  // with nothing held, fences pass at once
}

void FakeUpstream::PassFence(FenceId fence) {
  MutexLock lock(state_->mutex);
  const absl::StatusOr<Stream> stream = state_->books.FenceStream(fence);
  if (!stream.ok()) Die("FakeUpstream::PassFence: " + std::string(stream.status().message()));
  state_->held.Pass({fence, *stream});
}

void FakeUpstream::PassFences(Stream stream) {
  MutexLock lock(state_->mutex);
  state_->held.PassStream(stream);
}

void FakeUpstream::PassAllFences() {
  MutexLock lock(state_->mutex);
  state_->held.PassAll();
}

uint64_t FakeUpstream::calls(UpstreamCall call) const {
  MutexLock lock(state_->mutex);
  return state_->calls[static_cast<size_t>(call)];
}

uint64_t FakeUpstream::driver_nanoseconds() const {
  MutexLock lock(state_->mutex);
  return state_->driver;
}

std::vector<FakeUpstream::Mapping> FakeUpstream::mappings() const {
  MutexLock lock(state_->mutex);
  std::vector<Mapping> all;
  for (const auto& [address, mapping] : state_->books.mappings()) {
    all.push_back({DevicePtr(state_->options.device, address), mapping.handle, mapping.size});
  }
  return all;
}

size_t FakeUpstream::live_ranges() const {
  MutexLock lock(state_->mutex);
  return state_->books.ranges().size();
}

size_t FakeUpstream::live_handles() const {
  MutexLock lock(state_->mutex);
  return state_->books.handles().size();
}

size_t FakeUpstream::live_mappings() const {
  MutexLock lock(state_->mutex);
  return state_->books.mappings().size();
}

size_t FakeUpstream::live_fences() const {
  MutexLock lock(state_->mutex);
  return state_->books.fence_count();
}

Bytes FakeUpstream::bytes_created() const {
  MutexLock lock(state_->mutex);
  return state_->books.created();
}

Bytes FakeUpstream::bytes_mapped() const {
  Bytes sum;
  for (const Mapping& mapping : mappings()) sum += mapping.size;
  return sum;
}

}  // namespace gpuledger
