// allocator/torch/cuda/device.h - one CUDA device under PyTorch: the caching allocator over it, and all that PyTorch keeps of it.
//
// Its ledger's records come here first (Write): figures, history and trackers are made from them, and then they go on to the
// process's recorder. Lock order: the ledger's locks -> `lock`. Nothing is called under `lock` but trackers, which must not
// call back (as PyTorch says too).
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "gpuledger/cuda_upstream.h"
#include "history.h"
#include "private_pools.h"
#include "spin_lock.h"
#include "statistics.h"
#include "visiting_streams.h"

namespace gpuledger::pytorch {

// What the calling thread is doing with an allocator, for the records that come of it. Calls nest: a callback may free.
class Call {
 public:
  Call(Context context, MempoolId_t pool) : context_(std::move(context)), pool_(pool), outer_(std::exchange(current_, this)) {}
  ~Call() { current_ = outer_; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  static const Call* Current() { return current_; }
  static void Keep(std::exception_ptr thrown) {
    if (current_ != nullptr && current_->thrown_ == nullptr) current_->thrown_ = std::move(thrown);
  }
  [[nodiscard]] const Context& context() const { return context_; }
  [[nodiscard]] MempoolId_t pool() const { return pool_; }
  // What a tracker threw meanwhile.
  [[nodiscard]] const std::exception_ptr& thrown() const { return thrown_; }

 private:
  static thread_local Call* current_ [[gnu::tls_model("initial-exec")]];
  const Context context_;
  const MempoolId_t pool_;
  Call* const outer_;
  std::exception_ptr thrown_;
};

class Device final : public RecordSink {
 public:
  // Opens the device: from here on it has a context. Errors: those of CudaUpstream::Open and of GPULEDGER_ variables.
  static absl::StatusOr<std::unique_ptr<Device>> Open(c10::DeviceIndex index);

  void Write(const Record& record) noexcept override { WriteOf(record, expandable_); }
  void WriteFree(const Record& requested, const Record& completed) noexcept override;
  // `expandable`: whether it is of memory that is mapped into a range; otherwise of whole segments.
  void WriteOf(const Record& record, bool expandable) noexcept;

  [[nodiscard]] c10::DeviceIndex index() const { return index_; }
  [[nodiscard]] DeviceId id() const { return DeviceId(index_); }
  [[nodiscard]] CudaUpstream& upstream() { return *upstream_; }
  [[nodiscard]] CachingAllocator& core() { return core_; }
  [[nodiscard]] PrivatePools& pools() { return pools_; }
  [[nodiscard]] VisitingStreams& visiting_streams() { return visiting_streams_; }

  // Calls `use(Statistics&, History&)` with the lock held.
  template <class Use>
  auto WithLock(Use use) {
    const std::lock_guard lock(lock_);
    return use(statistics_, history_);
  }
  [[nodiscard]] bool history_active() const { return history_.active(); }
  [[nodiscard]] Context Gather(RecordContext of) const { return history_.Gather(of); }
  // After memory came from the upstream: the figures learn whose it is. No lock held.
  void LearnRanges() {
    if (lacks_ranges_.load(std::memory_order_relaxed)) [[unlikely]] Learn();
  }
  [[nodiscard]] std::vector<SegmentInfo> Segments() const;

  // In a forked child, which cannot use the device: another thread may have been at the figures, so nobody touches them again.
  void ForgetFigures() { forked_.store(true, std::memory_order_relaxed); }

  // Of the device's memory; 1 if none was set.
  [[nodiscard]] double memory_fraction() const { return fraction_; }
  void SetMemoryFraction(double fraction);
  // After plugged memory came or went: the rest is what the device's own may grow to. No lock held.
  void ShareLimit();
  // What the fraction allows, if one was set.
  [[nodiscard]] std::optional<Bytes> allowed() const;

 private:
  Device(c10::DeviceIndex index, std::unique_ptr<CudaUpstream> upstream, AllocatorOptions options);
  // Of all memory that PyTorch has of this device: the fraction, or GPULEDGER_CAP if that is less.
  [[nodiscard]] Bytes limit() const { return std::min(base_cap_, allowed().value_or(Bytes::Max())); }
  void Learn();
  // What PyTorch's own does before it refuses: false if nothing came of it.
  bool MakeRoom();
  void NoteInHistory(const Record& record, bool expandable) noexcept;
  void TellProfiler(const Record& record, int64_t change, int64_t allocated, int64_t reserved) const;

  const c10::DeviceIndex index_;
  const std::unique_ptr<CudaUpstream> upstream_;
  const Bytes base_cap_;  // GPULEDGER_CAP
  const bool expandable_;
  SpinLock lock_;
  Statistics statistics_;
  History history_;
  std::atomic<bool> lacks_ranges_ = false, forked_ = false;
  std::atomic<double> fraction_ = 1.0;
  CachingAllocator core_;
  PrivatePools pools_;
  VisitingStreams visiting_streams_;
};

}  // namespace gpuledger::pytorch
