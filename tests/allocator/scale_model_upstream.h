// An upstream that notes a sentence for whatever a GPU would punish, cheaply enough for 10^8 operations: memory that goes
// while a block lies on it or a stream may still use it, memory of a private pool that goes elsewhere, growth beyond the cap.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "gpuledger/fake_upstream.h"
#include "gpuledger/forwarding_upstream.h"
#include "scale_model_claims.h"
#include "scale_model_timeline.h"

namespace gpuledger::scale {

// The private pool that the calling thread's request names; 0 for the shared ones.
inline thread_local uint64_t requested_pool = 0;
inline thread_local StreamNumber requesting_stream = kNoStream;

class StrictUpstream final : public ForwardingUpstream {
 public:
  // `its_fake` is the inner one if it is a fake: then faults are its own, found after misuse.
  StrictUpstream(Upstream& its_inner, FakeUpstream* its_fake, Claims& its_claims, Timeline& its_timeline)
      : ForwardingUpstream(its_inner), fake(its_fake), claims(its_claims), timeline(its_timeline) {}

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
  absl::Status Synchronize() override;
  std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override;

  void FailNext(UpstreamCall call, uint64_t nth);
  void ClearFaults();
  // Of handles that hold a byte in use or pending, or belong to a private pool.
  uint64_t BytesThatStay();
  bool Empty();

  FakeUpstream* const fake;
  Claims& claims;
  Timeline& timeline;
  std::function<void(std::string)> wrong;
  std::function<bool(uint64_t)> pool_released;              // by id
  // Whether a block in use does, or a pending one that `after` does not come after.
  std::function<bool(uint64_t begin, uint64_t size, StreamNumber after)> lies_on;
  std::function<bool()> may_drop_early;                      // a fence that could not be waited for is dropped unpassed
  std::atomic<uint64_t> created = 0;            // bytes
  std::atomic<uint64_t> limit = ~uint64_t{0};   // what `created` may be when it grows

 private:
  struct LastUse {
    uint32_t stream = 0;
    uint64_t last = 0, pool = 0;
  };
  struct Handle {
    uint64_t size = 0;
    std::vector<uint64_t> addresses;  // mappings
    std::vector<LastUse> uses;        // a unit each, kept from the last mapping
  };
  absl::Status Fault(UpstreamCall call);
  void CheckGoing(uint64_t begin, uint64_t size);
  void Keep(Handle& handle, uint64_t address);
  void CountGrowth(uint64_t size);

  std::mutex mutex_;
  std::map<uint64_t, Handle> handles_;
  std::map<uint64_t, uint64_t> whole_ranges_;
  std::map<uint64_t, uint64_t> ranges_;
  std::vector<std::pair<UpstreamCall, uint64_t>> faults_;
};

}  // namespace gpuledger::scale
