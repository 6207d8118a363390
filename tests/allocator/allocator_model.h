// The model test's parts: the operations, each printable as C++, and an upstream that watches what the allocator does.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/forwarding_upstream.h"

namespace gpuledger::model {

// Blocks are named by the order of their allocation requests, so that a sequence means the same when it is replayed.
struct Allocate { uint64_t size; int stream; int payer; };
struct Free { uint64_t block; };
struct UseOn { uint64_t block; int stream; };
struct Transfer { uint64_t block; int payer; };
struct Pass { int stream; };
struct Fail { int call; uint64_t nth; };
struct Cap { uint64_t handles; };
struct Complete {};
struct Release {};
struct Settle {};
using Operation = std::variant<Allocate, Free, UseOn, Transfer, Pass, Fail, Cap, Complete, Release, Settle>;

struct Print {
  std::string operator()(Allocate o) const { return fmt::format("Allocate{{{}, {}, {}}}", o.size, o.stream, o.payer); }
  std::string operator()(Free o) const { return fmt::format("Free{{{}}}", o.block); }
  std::string operator()(UseOn o) const { return fmt::format("UseOn{{{}, {}}}", o.block, o.stream); }
  std::string operator()(Transfer o) const { return fmt::format("Transfer{{{}, {}}}", o.block, o.payer); }
  std::string operator()(Pass o) const { return fmt::format("Pass{{{}}}", o.stream); }
  std::string operator()(Fail o) const { return fmt::format("Fail{{{}, {}}}", o.call, o.nth); }
  std::string operator()(Cap o) const { return fmt::format("Cap{{{}}}", o.handles); }
  std::string operator()(Complete) const { return "Complete{}"; }
  std::string operator()(Release) const { return "Release{}"; }
  std::string operator()(Settle) const { return "Settle{}"; }
};

inline std::string AsRegression(const std::vector<Operation>& operations) {
  std::string text = "Replay({";
  for (const Operation& o : operations) text += std::visit(Print{}, o) + ", ";
  return text + "});";
}

// What a stream has queued and how far the allocator has waited for it.
struct StreamWork {
  uint64_t queued = 0;  // rises with each allocation and free on the stream
  uint64_t waited = 0;
};

// An upstream seen through glass: forwards everything, notes a sentence for whatever a GPU would punish, and fails calls
// when told to.
class WatchedUpstream final : public ForwardingUpstream {
 public:
  // `fake` is the inner one if it is a fake: then faults are its own, found after misuse.
  explicit WatchedUpstream(Upstream& its_inner, FakeUpstream* its_fake = nullptr)
      : ForwardingUpstream(its_inner), fake(its_fake) {}

  absl::StatusOr<Range> Reserve(Bytes size) override {
    if (absl::Status fault = Fault(UpstreamCall::kReserve); !fault.ok()) return fault;
    absl::StatusOr<Range> range = inner.Reserve(size);
    if (range.ok()) {
      ++live_ranges;
      if (!capabilities().mapping) mapped[range->base.address()] = {size.count(), 0, false, nullptr, 0};
    }
    return range;
  }
  absl::Status Unreserve(Range range) override {
    if (!capabilities().mapping) NoteLossOf(range.base.address(), range.size.count());
    if (absl::Status fault = Fault(UpstreamCall::kUnreserve); !fault.ok()) return fault;
    absl::Status status = inner.Unreserve(range);
    if (status.ok()) {
      --live_ranges;
      mapped.erase(range.base.address());
      ranges.erase(range.base.address());
    }
    return status;
  }
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override {
    if (absl::Status fault = Fault(UpstreamCall::kCreate); !fault.ok()) return fault;
    absl::StatusOr<HandleId> handle = inner.CreateHandle(size);
    if (handle.ok()) handles[handle->value()] = size.count();
    return handle;
  }
  absl::Status ReleaseHandle(HandleId handle) override {
    if (absl::Status fault = Fault(UpstreamCall::kRelease); !fault.ok()) return fault;
    absl::Status status = inner.ReleaseHandle(handle);
    if (status.ok()) handles.erase(handle.value());
    return status;
  }
  absl::Status Map(DevicePtr address, HandleId handle) override {
    if (absl::Status fault = Fault(UpstreamCall::kMap); !fault.ok()) return fault;
    absl::Status status = inner.Map(address, handle);
    if (!status.ok()) return status;
    for (auto& [at, mapping] : mapped) {
      if (mapping.handle == handle.value() && !mapping.dead) NoteDeath(at, mapping);
    }
    mapped[address.address()] = {handles[handle.value()], handle.value(), false, nullptr, 0};
    return status;
  }
  absl::Status Unmap(DevicePtr address, HandleId handle) override {
    const auto old = mapped.find(address.address());
    if (old != mapped.end() && old->second.dead) {
      const StreamWork& work = streams[old->second.stream];
      if (work.waited < old->second.queued) wrong = "an old address is unmapped before the work that may use it is done";
    } else {
      NoteLossOf(address.address(), handles[handle.value()]);
    }
    if (absl::Status fault = Fault(UpstreamCall::kUnmap); !fault.ok()) return fault;
    absl::Status status = inner.Unmap(address, handle);
    if (status.ok()) mapped.erase(address.address());
    return status;
  }
  absl::StatusOr<FenceId> RecordFence(Stream stream) override {
    absl::StatusOr<FenceId> fence = inner.RecordFence(stream);
    if (fence.ok()) recorded.push_back({*fence, stream.raw(), streams[stream.raw()].queued});
    return fence;
  }
  absl::Status WaitFence(FenceId fence) override {
    absl::Status status = inner.WaitFence(fence);
    if (status.ok()) NotePassed(fence);
    return status;
  }
  absl::StatusOr<bool> PollFence(FenceId fence) override {
    absl::StatusOr<bool> passed = inner.PollFence(fence);
    if (passed.ok() && *passed) NotePassed(fence);
    return passed;
  }
  std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override {
    std::vector<FenceId> passed = inner.PassedFences(fences);
    for (const FenceId fence : passed) NotePassed(fence);
    return passed;
  }
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override {
    if (absl::Status fault = Fault(UpstreamCall::kStreamWait); !fault.ok()) return fault;
    absl::Status status = inner.MakeStreamWait(stream, fence);
    for (const Recorded& r : recorded) {
      if (status.ok() && r.fence == fence) ordered[{stream.raw(), r.stream}] = r.queued;
    }
    return status;
  }
  void DropFence(FenceId fence) override {
    const absl::StatusOr<bool> passed = inner.PollFence(fence);
    if (!passed.ok() || !*passed) wrong = "a fence was dropped before it passed";
    std::erase_if(recorded, [fence](const Recorded& r) { return r.fence == fence; });
    for (auto it = live.begin(); it != live.end();) {
      it->second.fences.erase(fence.value());
      it = it->second.freed && it->second.fences.empty() ? live.erase(it) : std::next(it);
    }
    inner.DropFence(fence);
  }

  // The `nth` call of this kind from now on fails with `status`.
  void FailNext(UpstreamCall call, absl::Status status, uint64_t nth) {
    if (fake != nullptr) return fake->FailNext(call, std::move(status), nth);
    faults.push_back({call, nth, std::move(status)});
  }
  void ClearFaults() {
    if (fake != nullptr) fake->ClearFaults();
    faults.clear();
  }
  // Fences recorded on the stream pass, if they are held; a real device needs no telling.
  void PassFences(Stream stream) {
    if (fake != nullptr) fake->PassFences(stream);
    if (pass) pass(stream);
  }
  // Each handle once: at the address where it can be used.
  uint64_t bytes_mapped() const {
    uint64_t sum = 0;
    for (const auto& [at, mapping] : mapped) sum += mapping.dead ? 0 : mapping.size;
    return sum;
  }
  uint64_t bytes_created() const {
    uint64_t sum = 0;
    for (const auto& [handle, size] : handles) sum += size;
    return capabilities().mapping ? sum : bytes_mapped();
  }

  // In use, or freed with fences that have not been dropped.
  struct LiveBlock {
    uint64_t begin, end;
    bool freed = false;
    std::set<uint64_t> fences;
  };
  struct Recorded {
    FenceId fence;
    CUstream_st* stream;
    uint64_t queued;
  };
  struct StreamRange {
    uint64_t end;
    CUstream_st* stream;
  };
  // A handle at an address. Once it has another one, this is dead: no block may lie there, and it is unmapped only after
  // what `stream` had queued by then.
  struct Mapping {
    uint64_t size;
    uint64_t handle;
    bool dead;
    CUstream_st* stream;
    uint64_t queued;
  };
  FakeUpstream* const fake;
  CUstream_st* requester = nullptr;        // the stream of the allocation that is going on
  std::map<std::pair<CUstream_st*, CUstream_st*>, uint64_t> ordered;  // how far the first waits for the second, on the device
  std::function<void(Stream)> pass;        // what else lets fences pass
  std::string wrong;                       // the first thing a GPU would punish; empty while all is well
  std::vector<Recorded> recorded;          // live fences, in order
  std::map<CUstream_st*, StreamWork> streams;
  std::map<uint64_t, StreamRange> ranges;  // by base, from segments()
  std::map<uint64_t, LiveBlock> live;      // by the model's name of the block
  std::map<uint64_t, Mapping> mapped;      // by address: mappings, or ranges that came with their memory
  std::map<uint64_t, uint64_t> handles;    // bytes by id
  int live_ranges = 0;

 private:
  struct PlannedFault {
    UpstreamCall call;
    uint64_t in;
    absl::Status status;
  };

  void NotePassed(FenceId fence) {
    for (const Recorded& r : recorded) {
      if (r.fence == fence) streams[r.stream].waited = std::max(streams[r.stream].waited, r.queued);
    }
  }
  // The handle at `at` has got a second address.
  void NoteDeath(uint64_t at, Mapping& mapping) {
    mapping.dead = true;
    for (const auto& [id, block] : live) {
      if (block.begin < at + mapping.size && block.end > at) wrong = "memory of a block in use or pending is mapped again";
    }
    auto range = ranges.upper_bound(at);
    if (range == ranges.begin() || at >= (--range)->second.end) return;
    mapping.stream = range->second.stream;
    const StreamWork& work = streams[mapping.stream];
    mapping.queued = work.queued;
    if (mapping.stream == requester || work.waited == work.queued) return;
    if (ordered[{requester, mapping.stream}] != work.queued) wrong = "memory goes to a stream that does not wait for the one that used it";
  }
  absl::Status Fault(UpstreamCall call) {
    absl::Status due;
    std::erase_if(faults, [&](PlannedFault& fault) {
      if (fault.call != call || --fault.in > 0) return false;
      due = fault.status;
      return true;
    });
    return due;
  }
  void NoteLossOf(uint64_t begin, uint64_t size) {
    for (const auto& [id, block] : live) {
      if (block.begin < begin + size && block.end > begin) wrong = "memory is unmapped under a block in use or pending";
    }
    auto range = ranges.upper_bound(begin);
    if (range == ranges.begin() || begin >= (--range)->second.end) return;
    const StreamWork& work = streams[range->second.stream];
    if (work.waited != work.queued) wrong = "memory is unmapped while its stream has work that was not waited for";
  }

  std::vector<PlannedFault> faults;
};

}  // namespace gpuledger::model
