#include "device.h"

#include <c10/core/Allocator.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/Registry.h>

namespace gpuledger::pytorch {
namespace {

// PyTorch's own callbacks, such as the one that takes back what was shared with processes that have let go.
bool CallFreeMemoryCallbacks() {
  bool any = false;
  for (const std::string& name : c10::FreeCudaMemoryCallbacksRegistry()->Keys()) {
    any = c10::FreeCudaMemoryCallbacksRegistry()->Create(name)->Execute() || any;
  }
  return any;
}

Bytes Rest(Bytes limit, Bytes taken) { return limit == Bytes::Max() ? limit : limit - std::min(limit, taken); }

}  // namespace

thread_local Call* Call::current_ [[gnu::tls_model("initial-exec")]] = nullptr;

absl::StatusOr<std::unique_ptr<Device>> Device::Open(c10::DeviceIndex index) {
  absl::StatusOr<AllocatorOptions> options = AllocatorOptions::FromEnvironment();
  if (!options.ok()) return options.status();
  // As much as the device can: handles that other processes and network adapters may use cost nothing.
  const absl::StatusOr<CudaOptions> possible = CudaUpstream::Possible(DeviceId(index));
  if (!possible.ok()) return possible.status();
  absl::StatusOr<std::unique_ptr<CudaUpstream>> upstream = CudaUpstream::Open(DeviceId(index), *possible);
  if (!upstream.ok()) return upstream.status();
  return std::unique_ptr<Device>(new Device(index, *std::move(upstream), *options));
}

Device::Device(c10::DeviceIndex index, std::unique_ptr<CudaUpstream> upstream, AllocatorOptions options)
    : index_(index),
      upstream_(std::move(upstream)),
      base_cap_(options.cap),
      expandable_(upstream_->capabilities().mapping),
      history_(index),
      core_(*upstream_, options, this),
      pools_(core_, PluggedSink(*this), [this] { return Rest(limit(), core_.reserved()); }) {
  // Reached when what is cached does not suffice, which is when PyTorch's own would flush its cache and try again.
  core_.OnOutOfMemory([this](Bytes) { return MakeRoom(); });
}

bool Device::MakeRoom() {
  WithLock([](Statistics& statistics, History&) { statistics.CountRetry(); });
  const Bytes plugged = pools_.plugged_memory();
  pools_.GiveBack({0, 0});
  ShareLimit();
  bool any = pools_.plugged_memory() < plugged;
  try {
    any = CallFreeMemoryCallbacks() || any;
  } catch (...) {
    Call::Keep(std::current_exception());
  }
  return any;
}

// ---- records -------------------------------------------------------------------------------------------------------------

void PluggedSink::Write(const Record& record) noexcept { device_->WriteOf(record, false); }
void PluggedSink::WriteFree(const Record& requested, const Record& completed) noexcept { device_->WriteFree(requested, completed); }

void Device::WriteOf(const Record& record, bool expandable) noexcept {
  if (RecordSink* const recorder = DefaultRecordSink()) recorder->Write(record);
  if (forked_.load(std::memory_order_relaxed)) [[unlikely]] return;
  int64_t allocated = 0, reserved = 0;
  {
    const std::lock_guard lock(lock_);
    statistics_.Note(record);
    if (history_.active()) [[unlikely]] NoteInHistory(record, expandable);
    if (statistics_.lacks_ranges()) [[unlikely]] lacks_ranges_.store(true, std::memory_order_relaxed);
    allocated = statistics_.allocated();
    reserved = statistics_.reserved();
  }
  const auto charged = static_cast<int64_t>(record.charged.count());
  if (record.kind == RecordKind::kAllocate) {
    TellProfiler(record, charged, allocated, reserved);
  } else if (record.kind == RecordKind::kFreeRequested) {
    TellProfiler(record, -charged, allocated, reserved);
  }
}

void Device::WriteFree(const Record& requested, const Record& completed) noexcept {
  if (RecordSink* const recorder = DefaultRecordSink()) recorder->WriteFree(requested, completed);
  if (forked_.load(std::memory_order_relaxed)) [[unlikely]] return;
  int64_t allocated = 0, reserved = 0;
  {
    const std::lock_guard lock(lock_);
    statistics_.NoteFree(requested);
    if (history_.active()) [[unlikely]] {
      NoteInHistory(requested, expandable_);
      NoteInHistory(completed, expandable_);
    }
    allocated = statistics_.allocated();
    reserved = statistics_.reserved();
  }
  TellProfiler(requested, -static_cast<int64_t>(requested.charged.count()), allocated, reserved);
}

void Device::NoteInHistory(const Record& record, bool expandable) noexcept {
  static const Context none;
  const Call* const call = Call::Current();
  try {
    history_.Note(record, call == nullptr ? none : call->context(), call == nullptr ? MempoolId_t{0, 0} : call->pool(), expandable);
  } catch (...) {
    Call::Keep(std::current_exception());
  }
}

void Device::TellProfiler(const Record& record, int64_t change, int64_t allocated, int64_t reserved) const {
  c10::reportMemoryUsageToProfiler(reinterpret_cast<void*>(record.address), change, static_cast<size_t>(allocated), static_cast<size_t>(reserved),
                                   c10::Device(c10::DeviceType::CUDA, index_));
}

// ---- ranges, and what a fraction allows -------------------------------------------------------------------------------------

void Device::Learn() {
  // What comes while the segments are listed may not be in the list: it is for the next time.
  const size_t known = WithLock([](Statistics& statistics, History&) { return statistics.unplaced(); });
  const std::vector<SegmentInfo> segments = Segments();
  WithLock([&](Statistics& statistics, History&) {
    statistics.Learn(segments, known);
    lacks_ranges_.store(statistics.lacks_ranges(), std::memory_order_relaxed);
  });
  ShareLimit();
}

std::vector<SegmentInfo> Device::Segments() const {
  std::vector<SegmentInfo> all;
  for (const auto& allocator : pools_.Allocators()) {
    std::vector<SegmentInfo> some = allocator->segments();
    all.insert(all.end(), std::make_move_iterator(some.begin()), std::make_move_iterator(some.end()));
  }
  return all;
}

std::optional<Bytes> Device::allowed() const {
  const double fraction = fraction_;
  if (fraction >= 1) return {};
  return Bytes(static_cast<uint64_t>(fraction * static_cast<double>(upstream_->memory_info().total.count())));
}

void Device::SetMemoryFraction(double fraction) {
  fraction_ = fraction;
  ShareLimit();
}

void Device::ShareLimit() {
  if (const Bytes rest = Rest(limit(), pools_.plugged_memory()); rest != core_.totals().cap) core_.set_cap(rest);
}

}  // namespace gpuledger::pytorch
