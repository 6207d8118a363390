// gpuledger/fake_upstream.h - an upstream without memory, for tests, simulations and plans.
//
// It gives out addresses that lead nowhere, under the same rules as a GPU, with a clock of its own: now() advances by
// the modelled cost of each call (also of one that fails) and by Advance, and by nothing else. Faults can be injected
// into any call. Fences pass at once, or, while held, when told. Addresses and ids are never used again, so whoever
// mixes up two generations is found out. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gpuledger/types.h"
#include "gpuledger/upstream.h"

namespace gpuledger {

// The calls that cost time and can fail.
enum class UpstreamCall : uint8_t {
  kReserve, kUnreserve, kCreate, kRelease, kMap, kUnmap, kRecordFence, kPollFence, kWaitFence, kStreamWait, kSynchronize
};
inline constexpr int kUpstreamCallCount = 11;

// Nanoseconds per call: what the driver took on an H200 for a 2 MiB handle, and for an event (`driver_costs` of tests/gpu.sh
// shows another device's beside these). A larger handle costs more, in the proportions of an H100:
//
//   cost(call, size) = cost(call) x growth(call, size)
//   growth(create):  1 at 2 MiB, 1.31 at 32 MiB, 1.45 at 128 MiB        growth(map):   1, 1, 1.15
//   growth(release): 1, 2.38, 7.29                                      growth(unmap): 1
//
// straight lines between these, the last one going on; 1 below 2 MiB, and in every other call.
struct GPULEDGER_EXPORT FakeCosts {
  uint64_t reserve = 4'000;    // not measured, as is the next: rare, since ranges are kept
  uint64_t unreserve = 4'000;
  uint64_t create = 7'400;
  uint64_t release = 9'200;
  uint64_t map = 22'500;       // map 0.5 us and set access 22 us: Map is both
  uint64_t unmap = 14'700;
  uint64_t record_fence = 220;
  uint64_t poll_fence = 160;
  uint64_t wait_fence = 160;   // of one that has passed; how long a held one would take, a test says with Advance
  uint64_t stream_wait = 190;
  uint64_t synchronize = 160;  // of a device that is done, as for wait_fence

  // `size` is that of the handle; it does not matter to calls that have none.
  [[nodiscard]] uint64_t of(UpstreamCall call, Bytes size = Bytes()) const;
};

struct FakeOptions {
  Bytes total = Bytes(uint64_t{16} << 30);
  Bytes granularity = Bytes(uint64_t{2} << 20);
  FakeCosts costs = {};
  bool aliasing = true;      // as on a GPU
  bool mapping = true;       // false: ranges come with their memory (Capabilities::mapping), and nothing is aliased
  bool hold_fences = false;  // see HoldFences
  DeviceId device{0};
};

class GPULEDGER_EXPORT FakeUpstream final : public Upstream {
 public:
  explicit FakeUpstream(const FakeOptions& options = {});
  ~FakeUpstream() override;

  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] std::string_view name() const override { return "fake"; }
  [[nodiscard]] DeviceId device() const override;
  [[nodiscard]] Capabilities capabilities() const override;
  [[nodiscard]] Bytes granularity() const override;
  [[nodiscard]] MemoryInfo memory_info() const override;
  void VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const override;
  absl::StatusOr<Range> Reserve(Bytes size) override;
  absl::Status Unreserve(Range range) override;
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override;
  absl::Status ReleaseHandle(HandleId handle) override;
  absl::Status Map(DevicePtr address, HandleId handle) override;
  absl::Status Unmap(DevicePtr address, HandleId handle) override;
  absl::StatusOr<FenceId> RecordFence(Stream stream) override;
  absl::StatusOr<bool> PollFence(FenceId fence) override;
  absl::Status WaitFence(FenceId fence) override;
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override;
  void DropFence(FenceId fence) override;
  absl::Status Synchronize() override;  // held fences pass

  void Advance(uint64_t nanoseconds);

  // The `nth` call of this kind from now on (1: the next) returns `status` (not OK) and changes nothing but the counts
  // and the clock. Faults add up. Misuse is found before a fault: a faulty caller is never excused by one.
  void FailNext(UpstreamCall call, absl::Status status, uint64_t nth = 1);
  void ClearFaults();

  // Fences recorded while held pass only when told, or when waited for. A fence never passes before what is ahead of
  // it: the fences recorded earlier on its stream, and those that MakeStreamWait put there; they pass with it.
  // HoldFences(false) passes them all.
  void HoldFences(bool hold);
  void PassFence(FenceId fence);  // fatal if it is not live
  void PassFences(Stream stream);
  void PassAllFences();

  // What has been called, with or without success, and the modelled time of it (Advance not counted).
  [[nodiscard]] uint64_t calls(UpstreamCall call) const;
  [[nodiscard]] uint64_t driver_nanoseconds() const;

  // What is live. bytes_mapped counts a handle once for each address; bytes_created once.
  struct Mapping {
    DevicePtr address;
    HandleId handle;
    Bytes size;
  };
  [[nodiscard]] std::vector<Mapping> mappings() const;  // by address
  [[nodiscard]] size_t live_ranges() const;
  [[nodiscard]] size_t live_handles() const;
  [[nodiscard]] size_t live_mappings() const;
  [[nodiscard]] size_t live_fences() const;
  [[nodiscard]] Bytes bytes_created() const;
  [[nodiscard]] Bytes bytes_mapped() const;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace gpuledger
