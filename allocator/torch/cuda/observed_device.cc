#include "observed_device.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include <fmt/format.h>

namespace gpuledger {

TimePoint ObservedDevice::SteadyClock::now() const {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return TimePoint(static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count()));
}

ObservedDevice::ObservedDevice(DeviceId device, std::function<absl::Status()> wait, std::function<MemoryInfo()> memory)
    : device_(device), wait_(std::move(wait)), memory_(std::move(memory)), ledger_(device, clock_) {
  RegisterKeeper(this);
}

ObservedDevice::~ObservedDevice() { UnregisterKeeper(this); }

void ObservedDevice::Put(const ChargeRequest& request, Charge charge, bool pending) {
  const uint64_t address = request.address.address();
  blocks_.erase(address);  // one whose free was never told has ended by now, since its memory was handed out again
  if (pending) charge.MakePending();
  blocks_.emplace(address, Block{std::move(charge), request.charged, pending});
}

void ObservedDevice::Allocated(const ChargeRequest& request) {
  Charge charge = ledger_.Debit(request);
  const std::lock_guard lock(mutex_);
  Put(request, std::move(charge), false);
}

void ObservedDevice::FreeRequested(uint64_t address) {
  const std::lock_guard lock(mutex_);
  if (taking_over_) free_requested_.insert(address);
  const auto found = blocks_.find(address);
  if (found == blocks_.end() || found->second.pending) return;
  found->second.pending = true;
  found->second.charge.MakePending();
}

void ObservedDevice::FreeCompleted(uint64_t address) {
  const std::lock_guard lock(mutex_);
  if (taking_over_) free_completed_.insert(address);
  blocks_.erase(address);
}

void ObservedDevice::Note(RecordKind kind, uint64_t address, Bytes requested, Bytes charged, CUstream_st* stream) {
  Record record;
  record.kind = kind;
  record.address = address;
  record.requested = requested;
  record.charged = charged;
  record.stream = stream;
  record.device = device_;
  ledger_.Note(record);
}

void ObservedDevice::Mapped(uint64_t address, Bytes size, CUstream_st* stream) {
  const auto change = static_cast<int64_t>(size.count());
  const int64_t now = reserved_.fetch_add(change) + change;
  int64_t peak = peak_reserved_.load();
  while (now > peak && !peak_reserved_.compare_exchange_weak(peak, now)) {
  }
  upstream_calls_ += 1;
  Note(RecordKind::kMapped, address, Bytes(), size, stream);
}

void ObservedDevice::Unmapped(uint64_t address, Bytes size, CUstream_st* stream) {
  reserved_ -= static_cast<int64_t>(size.count());
  upstream_calls_ += 1;
  Note(RecordKind::kUnmapped, address, Bytes(), size, stream);
}

void ObservedDevice::OutOfMemory(Bytes requested, CUstream_st* stream) {
  Note(RecordKind::kOutOfMemory, 0, requested, Bytes(), stream);
}

void ObservedDevice::BeginTakeover() {
  const std::lock_guard lock(mutex_);
  taking_over_ = true;
}

void ObservedDevice::SnapshotTaken() {
  const std::lock_guard lock(mutex_);
  if (taking_over_) reserved_ = 0, peak_reserved_ = 0;
}

void ObservedDevice::EndTakeover(const std::vector<Found>& blocks, Bytes reserved) {
  const std::lock_guard lock(mutex_);
  for (const Found& b : blocks) {
    if (blocks_.contains(b.address) || free_completed_.contains(b.address)) continue;
    const ChargeRequest request{Payer(), b.requested, b.charged, Stream(device_, b.stream), DevicePtr(device_, b.address), kNoSite};
    Put(request, ledger_.Debit(request), b.pending || free_requested_.contains(b.address));
  }
  const auto before = static_cast<int64_t>(reserved.count());
  reserved_ += before;
  peak_reserved_ += before;
  taking_over_ = false;
  free_requested_ = {}, free_completed_ = {};
}

TimePoint ObservedDevice::now() const { return clock_.now(); }

Totals ObservedDevice::totals() const {
  ledger_.Flush();
  const Usage usage = ledger_.usage();
  const auto size = [](int64_t bytes) { return Bytes(static_cast<uint64_t>(std::max<int64_t>(bytes, 0))); };
  Totals totals;
  totals.reserved = size(reserved_);
  totals.peak_reserved = size(peak_reserved_);
  totals.in_use = usage.in_use, totals.pending = usage.pending;
  totals.cap = Bytes::Max();
  totals.upstream_calls = upstream_calls_;
  const Bytes taken = usage.in_use + usage.pending;  // other threads may have changed it since
  totals.cached = totals.reserved - std::min(totals.reserved, taken);
  return totals;
}

absl::StatusOr<LiveAllocation> ObservedDevice::Find(uint64_t address) const {
  const std::lock_guard lock(mutex_);
  const auto after = blocks_.upper_bound(address);
  if (after != blocks_.begin()) {
    const auto& [start, block] = *std::prev(after);
    if (address - start < block.charged.count()) return block.charge.info();
  }
  return absl::NotFoundError(fmt::format("no block in use or pending holds {:#x}, on the observed device {}", address, device_.value()));
}

absl::Status ObservedDevice::Transfer(uint64_t address, Payer to) {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(address);
  if (found == blocks_.end() || found->second.pending) {
    return absl::NotFoundError(fmt::format("no block in use starts at {:#x}, on the observed device {}", address, device_.value()));
  }
  ledger_.Transfer(found->second.charge, to);
  return absl::OkStatus();
}

absl::Status ObservedDevice::Settle() {
  const auto pending = [this] {
    ledger_.Flush();
    return ledger_.usage().pending;
  };
  if (pending().is_zero()) return absl::OkStatus();
  if (forked_) {
    return absl::FailedPreconditionError(fmt::format("device {} belongs to the parent process: a forked child cannot wait for its work", device_.value()));
  }
  if (absl::Status s = wait_(); !s.ok()) return s;
  if (const Bytes left = pending(); !left.is_zero()) {
    return absl::InternalError(fmt::format("{} of device {} are pending still after it was waited for", ToString(left), device_.value()));
  }
  return absl::OkStatus();
}

void ObservedDevice::LockForFork() {
  mutex_.lock();
  ledger_.LockForFork();
}
void ObservedDevice::UnlockAfterFork() {
  ledger_.UnlockAfterFork();
  mutex_.unlock();
}
void ObservedDevice::ForgetOtherThreads() {
  forked_ = true;
  ledger_.ForgetOtherThreads();
}

}  // namespace gpuledger
