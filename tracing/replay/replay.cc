#include "replay.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "gpuledger/allocator.h"
#include "gpuledger/record.h"
#include "timeline.h"

namespace gpuledger::replay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kRowsBetweenReports = 4096;

uint64_t Since(Clock::time_point start) {
  return static_cast<uint64_t>(std::chrono::nanoseconds(Clock::now() - start).count());
}

// What reading the clock twice takes by itself: the least of many times.
uint64_t CostOfTiming() {
  uint64_t least = UINT64_MAX;
  for (int i = 0; i < 2000; ++i) least = std::min(least, Since(Clock::now()));
  return least;
}

// Each thread keeps its last records whole, as a recorder's buffers would: a replay pays for full records.
class RingSink final : public RecordSink {
 public:
  void Write(const Record& record) noexcept override {
    static thread_local const auto ring = std::make_unique<std::array<Record, 4096>>();
    static thread_local size_t next = 0;
    (*ring)[next++ % ring->size()] = record;
  }
};

// The allocator's calls for the rows of a trace. A row is handled by one thread, after those it depends on.
class Driver {
 public:
  Driver(const AllocationTrace& trace, ReplayDevice& device, const ReplayOptions& options)
      : trace_(trace),
        device_(device),
        allocator_(device.upstream(), {.cap = options.cap}, &sink_),
        blocks_(trace.allocations.size()),
        timeline_(trace, options.samples),
        half_us_((trace.duration_us() + 1) / 2) {
    for (uint32_t s = 0; s < trace.streams; ++s) {
      payers_.push_back({InternOwner(fmt::format("trace/stream {}", s)), Role::kOther});
    }
  }

  ~Driver() {
    for (const uint64_t address : blocks_) {
      if (address != 0) allocator_.Free(DevicePtr(device_.upstream().device(), address));
    }
  }

  [[nodiscard]] const AllocationTrace& trace() const { return trace_; }
  [[nodiscard]] bool stopped() const { return stopped_.load(std::memory_order_acquire); }

  // Keeps the first failure by the order of the trace.
  void Stop(size_t row, absl::Status status) {
    const std::lock_guard lock(mutex_);
    if (status_.ok() || row < stopped_at_) {
      stopped_at_ = row;
      status_ = std::move(status);
    }
    stopped_.store(true, std::memory_order_release);
  }

  // Tells `progress`, and stops if it says so.
  bool GoOn(size_t row, const RowProgress& progress) {
    if (!progress || progress(row, trace_.rows.size())) return true;
    Stop(row, absl::CancelledError("stopped while the trace was replayed"));
    return false;
  }

  // `calls` is the time of this thread in the allocator so far.
  void Handle(size_t row, uint64_t& calls);

  absl::StatusOr<ReplayResult> Finish(uint64_t calls);

 private:
  template <class Call>
  static auto Time(uint64_t& calls, const Call& call);
  absl::Status Allocate(uint32_t allocation, uint64_t& calls);
  absl::Status Free(uint32_t allocation, uint64_t& calls);
  [[nodiscard]] LiveBlock BlockOf(uint32_t allocation, DevicePtr address) const {
    return {allocation, address, trace_.allocations[allocation].size, device_.StreamOf(trace_.allocations[allocation].stream)};
  }

  const AllocationTrace& trace_;
  ReplayDevice& device_;
  RingSink sink_;
  CachingAllocator allocator_;
  std::vector<uint64_t> blocks_;  // address of each allocation that lives
  std::vector<Payer> payers_;     // of each stream
  const SiteId site_ = SiteHere();
  Timeline timeline_;
  const uint64_t half_us_;
  std::atomic<bool> past_half_ = false;
  std::atomic<uint64_t> driver_at_half_ = 0;
  std::atomic<bool> stopped_ = false;
  std::mutex mutex_;
  size_t stopped_at_ = 0;
  absl::Status status_;
};

// The upstream's own time, which it measures itself, is no time of the allocator's.
template <class Call>
auto Driver::Time(uint64_t& calls, const Call& call) {
  const uint64_t upstream = UpstreamNanosecondsOfThisThread();
  const Clock::time_point start = Clock::now();
  auto result = call();
  const uint64_t took = Since(start);
  calls += took - std::min(took, UpstreamNanosecondsOfThisThread() - upstream);
  return result;
}

absl::Status Driver::Allocate(uint32_t allocation, uint64_t& calls) {
  const Allocation& wanted = trace_.allocations[allocation];
  const Stream stream = device_.StreamOf(wanted.stream);
  const OwnerScope scope(payers_[wanted.stream]);
  const absl::StatusOr<DevicePtr> block =
      Time(calls, [&] { return allocator_.AllocateRaw(wanted.size, stream, site_); });
  if (!block.ok()) return block.status();
  blocks_[allocation] = block->address();
  return device_.Write(BlockOf(allocation, *block));
}

absl::Status Driver::Free(uint32_t allocation, uint64_t& calls) {
  const DevicePtr address(device_.upstream().device(), std::exchange(blocks_[allocation], 0));
  const LiveBlock block = BlockOf(allocation, address);
  absl::Status status = device_.Check(block);
  if (status.ok() && trace_.allocations[allocation].used_elsewhere) {
    const absl::StatusOr<Stream> side = device_.UseElsewhere(block);
    status = side.status();
    if (side.ok()) status = Time(calls, [&] { return allocator_.RecordStream(address, *side); });
  }
  Time(calls, [&] { return allocator_.Free(address), 0; });
  return status;
}

void Driver::Handle(size_t index, uint64_t& calls) {
  const Row& row = trace_.rows[index];
  device_.AdvanceTo(row.time_us);
  if (row.time_us >= half_us_ && !past_half_.load(std::memory_order_relaxed) && !past_half_.exchange(true)) {
    driver_at_half_ = device_.driver_nanoseconds();
  }
  absl::Status status;
  switch (row.op) {
    case Op::kAllocate: status = Allocate(row.allocation, calls); break;
    case Op::kFree: status = Free(row.allocation, calls); break;
    case Op::kComplete: device_.Complete(row.allocation); break;
  }
  if (!status.ok()) return Stop(index, std::move(status));
  if (timeline_.kept()) timeline_.Add(row, trace_.allocations[row.allocation].size, allocator_);
}

absl::StatusOr<ReplayResult> Driver::Finish(uint64_t calls) {
  ReplayResult result;
  result.completed = status_.ok();
  if (!status_.ok()) {
    if (!absl::IsResourceExhausted(status_)) return status_;
    result.stopped_at_line = AllocationTrace::LineOf(stopped_at_);
    result.report = std::string(status_.message());
  }
  if (absl::Status status = allocator_.CheckInvariants(); !status.ok()) return status;
  result.peak_reserved = allocator_.totals().peak_reserved;
  for (int i = 0; i < kUpstreamCallCount; ++i) {
    result.upstream_calls[i] = device_.upstream().calls(static_cast<UpstreamCall>(i));
  }
  const uint64_t driver = device_.driver_nanoseconds();
  result.upstream_seconds = static_cast<double>(driver) / 1e9;
  if (past_half_) result.upstream_seconds_second_half = static_cast<double>(driver - driver_at_half_) / 1e9;
  uint64_t timed = 0;
  for (const Row& row : trace_.rows) timed += row.op == Op::kComplete ? 0 : 1;
  const uint64_t clock = CostOfTiming() * timed;
  result.ns_per_event = static_cast<double>(calls - std::min(calls, clock)) / static_cast<double>(timed);
  result.timeline = timeline_.Take();
  return result;
}

// Thread `number` of `count` that allocate, or the one that frees (number == count).
class Part {
 public:
  Part(Driver& driver, std::vector<Part>& parts, size_t number, const RowProgress& progress)
      : driver_(&driver), parts_(&parts), number_(number), progress_(progress) {}
  Part(Part&& other) noexcept : driver_(other.driver_), parts_(other.parts_), number_(other.number_), progress_(other.progress_) {}

  void Run();
  [[nodiscard]] size_t row() const { return next_.load(std::memory_order_acquire); }
  [[nodiscard]] bool done() const { return row() == driver_->trace().rows.size(); }
  [[nodiscard]] uint64_t calls() const { return calls_; }

 private:
  [[nodiscard]] size_t PartOf(const Row& row) const {
    const size_t allocating = parts_->size() - 1;
    return row.op == Op::kAllocate ? driver_->trace().allocations[row.allocation].stream % allocating : allocating;
  }
  // The first of this part's rows from `row` on.
  [[nodiscard]] size_t Next(size_t row) const {
    const std::vector<Row>& rows = driver_->trace().rows;
    while (row < rows.size() && PartOf(rows[row]) != number_) ++row;
    return row;
  }
  // Until `other` has done all its rows before `row`; false if the replay stopped. The first row that is not done waits for
  // nobody, so somebody always goes on, and one that stops lets go those that wait for it.
  [[nodiscard]] bool WaitFor(const Part& other, size_t row) const {
    constexpr int kSpins = 2000;  // about as long as it takes to sleep and be woken
    int spins = 0;
    for (size_t at = other.row(); at < row; at = other.row()) {
      if (spins++ >= kSpins) {
        other.next_.wait(at, std::memory_order_acquire);
      } else {
        __builtin_ia32_pause();
      }
    }
    return !driver_->stopped();
  }
  void ComeTo(size_t row) {
    next_.store(row, std::memory_order_release);
    next_.notify_all();
  }

  Driver* driver_;
  std::vector<Part>* parts_;
  size_t number_;
  RowProgress progress_;
  alignas(64) std::atomic<size_t> next_ = 0;  // the row it is at: those before are done
  uint64_t calls_ = 0;
};

void Part::Run() {
  const AllocationTrace& trace = driver_->trace();
  const size_t allocating = parts_->size() - 1;
  size_t report_at = 0;
  for (size_t row = Next(0); row < trace.rows.size(); row = Next(row + 1)) {
    ComeTo(row);
    const size_t other = number_ == allocating ? trace.allocations[trace.rows[row].allocation].stream % allocating : allocating;
    if (!WaitFor((*parts_)[other], row)) break;
    if (row >= report_at && !driver_->GoOn(row, progress_)) break;
    if (row >= report_at) report_at = row + kRowsBetweenReports;
    driver_->Handle(row, calls_);
    if (driver_->stopped()) break;
  }
  ComeTo(trace.rows.size());
}

uint64_t RunOnOneThread(Driver& driver, const RowProgress& progress) {
  const size_t rows = driver.trace().rows.size();
  uint64_t calls = 0;
  for (size_t row = 0; row < rows && !driver.stopped(); ++row) {
    if (row % kRowsBetweenReports != 0 || driver.GoOn(row, progress)) driver.Handle(row, calls);
  }
  return calls;
}

// The calling thread frees, and reports.
uint64_t RunOnThreads(Driver& driver, size_t count, const RowProgress& progress) {
  std::vector<Part> parts;
  parts.reserve(count);
  for (size_t i = 0; i < count; ++i) parts.emplace_back(driver, parts, i, i + 1 == count ? progress : RowProgress());
  std::vector<std::thread> threads;
  for (size_t i = 0; i + 1 < count; ++i) threads.emplace_back([&part = parts[i]] { part.Run(); });
  parts.back().Run();
  for (const Part& part : parts) {
    while (!part.done()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (!driver.stopped()) (void)driver.GoOn(part.row(), progress);
    }
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t calls = 0;
  for (const Part& part : parts) calls += part.calls();
  return calls;
}

}  // namespace

absl::StatusOr<ReplayResult> Replay(const AllocationTrace& trace, ReplayDevice& device, const ReplayOptions& options,
                                    const RowProgress& progress) {
  if (options.threads < 1 || options.threads > kMostThreads) Die("Replay: 1 to 256 threads");
  const auto driver = std::make_unique<Driver>(trace, device, options);
  const uint64_t calls = options.threads == 1 ? RunOnOneThread(*driver, progress)
                                              : RunOnThreads(*driver, static_cast<size_t>(options.threads), progress);
  return driver->Finish(calls);
}

}  // namespace gpuledger::replay
