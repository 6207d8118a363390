// allocator/torch/cuda/observed_device.h - the ledger of a device whose memory somebody else hands out, kept from what that
// allocator tells. Knows nothing of PyTorch.
//
// Whoever reports events does so in their order for each address, from any thread: a charge, then its free, requested and
// completed. The allocator's own lock may be held meanwhile: nothing here waits for a device, for Python or for that lock. A soft
// cap's callback is called inside, so it must not allocate or free memory of the device.
//
// What was alive before the first event is taken over from a list that the allocator gives at one instant, while events go on:
//
//   BeginTakeover   from here on it is noted which blocks were freed
//   (the list is taken)  SnapshotTaken at that very instant: reserved memory is counted from there
//   EndTakeover     what is in the list, was not charged since the beginning and not freed meanwhile, becomes unattributed
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include <absl/container/btree_map.h>
#include <absl/container/flat_hash_set.h>

#include "gpuledger/process.h"

namespace gpuledger {

class ObservedDevice final : public LedgerKeeper {
 public:
  // `wait`: waits for all work of the device, and has the allocator complete what it can. `memory`: what the driver says now.
  ObservedDevice(DeviceId device, std::function<absl::Status()> wait, std::function<MemoryInfo()> memory);
  ~ObservedDevice() override;
  ObservedDevice(const ObservedDevice&) = delete;
  ObservedDevice& operator=(const ObservedDevice&) = delete;

  void Allocated(const ChargeRequest& request);
  void FreeRequested(uint64_t address);
  void FreeCompleted(uint64_t address);
  void Mapped(uint64_t address, Bytes size, CUstream_st* stream);
  void Unmapped(uint64_t address, Bytes size, CUstream_st* stream);
  void OutOfMemory(Bytes requested, CUstream_st* stream);

  struct Found {
    uint64_t address;
    Bytes requested, charged;
    CUstream_st* stream;
    bool pending;
  };
  void BeginTakeover();
  void SnapshotTaken();
  void EndTakeover(const std::vector<Found>& blocks, Bytes reserved);

  Ledger& ledger() override { return ledger_; }
  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] Totals totals() const override;
  [[nodiscard]] std::string_view memory_name() const override { return "cuda"; }
  [[nodiscard]] MemoryInfo memory_info() const override { return memory_(); }
  [[nodiscard]] absl::StatusOr<LiveAllocation> Find(uint64_t address) const override;
  absl::Status Transfer(uint64_t address, Payer to) override;
  // kFailedPrecondition in a forked child with pending blocks: nobody can wait for the parent's device there.
  absl::Status Settle() override;
  void LockForFork() override;
  void UnlockAfterFork() override;
  void ForgetOtherThreads() override;

 private:
  struct SteadyClock final : Clock {
    [[nodiscard]] TimePoint now() const override;
  };
  struct Block {
    Charge charge;
    Bytes charged;
    bool pending = false;
  };

  void Note(RecordKind kind, uint64_t address, Bytes requested, Bytes charged, CUstream_st* stream);
  void Put(const ChargeRequest& request, Charge charge, bool pending);

  const DeviceId device_;
  const std::function<absl::Status()> wait_;
  const std::function<MemoryInfo()> memory_;
  const SteadyClock clock_;
  Ledger ledger_;
  std::atomic<int64_t> reserved_ = 0;  // below 0 only before a takeover's end
  std::atomic<int64_t> peak_reserved_ = 0;
  std::atomic<uint64_t> upstream_calls_ = 0;
  std::atomic<bool> forked_ = false;

  mutable std::mutex mutex_;  // one for all of the device: the lock that its allocator holds around events is no finer
  // The rest is guarded by it. Blocks die before their ledger.
  absl::btree_map<uint64_t, Block> blocks_;
  bool taking_over_ = false;
  absl::flat_hash_set<uint64_t> free_requested_, free_completed_;  // during a takeover
};

}  // namespace gpuledger
