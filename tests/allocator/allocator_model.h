// The model test's parts: the operations, each printable as C++, and an upstream that watches what the allocator does.
#pragma once

#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"

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

// A fake upstream seen through glass: forwards everything, and notes a sentence for whatever a GPU would punish.
class WatchedUpstream final : public Upstream {
 public:
  explicit WatchedUpstream(const FakeOptions& options) : fake(options) {}

  std::string_view name() const override { return fake.name(); }
  DeviceId device() const override { return fake.device(); }
  Capabilities capabilities() const override { return fake.capabilities(); }
  Bytes granularity() const override { return fake.granularity(); }
  MemoryInfo memory_info() const override { return fake.memory_info(); }
  TimePoint now() const override { return fake.now(); }
  absl::StatusOr<Range> Reserve(Bytes size) override { return fake.Reserve(size); }
  absl::Status Unreserve(Range range) override { return fake.Unreserve(range); }
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override { return fake.CreateHandle(size); }
  absl::Status ReleaseHandle(HandleId handle) override { return fake.ReleaseHandle(handle); }
  absl::Status Map(DevicePtr address, HandleId handle) override { return fake.Map(address, handle); }

  absl::Status Unmap(DevicePtr address, HandleId handle) override {
    const uint64_t begin = address.address(), end = begin + granularity().count();
    for (const auto& [id, block] : live) {
      if (block.begin < end && block.end > begin) wrong = "memory is unmapped under a block in use or pending";
    }
    for (const auto& [stream, work] : streams) {
      const auto range = ranges.find(stream);
      if (range == ranges.end() || begin < range->second.first || begin >= range->second.second) continue;
      if (work.waited != work.queued) wrong = "memory is unmapped while its stream has work that was not waited for";
    }
    return fake.Unmap(address, handle);
  }
  absl::StatusOr<FenceId> RecordFence(Stream stream) override {
    absl::StatusOr<FenceId> fence = fake.RecordFence(stream);
    if (fence.ok()) recorded.push_back({*fence, stream.raw(), streams[stream.raw()].queued});
    return fence;
  }
  absl::StatusOr<bool> PollFence(FenceId fence) override { return fake.PollFence(fence); }
  absl::Status WaitFence(FenceId fence) override {
    for (const Recorded& r : recorded) {
      if (r.fence == fence) streams[r.stream].waited = std::max(streams[r.stream].waited, r.queued);
    }
    return fake.WaitFence(fence);
  }
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override { return fake.MakeStreamWait(stream, fence); }
  void DropFence(FenceId fence) override {
    const absl::StatusOr<bool> passed = fake.PollFence(fence);
    if (!passed.ok() || !*passed) wrong = "a fence was dropped before it passed";
    std::erase_if(recorded, [fence](const Recorded& r) { return r.fence == fence; });
    for (auto it = live.begin(); it != live.end();) {
      it->second.fences.erase(fence.value());
      it = it->second.freed && it->second.fences.empty() ? live.erase(it) : std::next(it);
    }
    fake.DropFence(fence);
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
  FakeUpstream fake;
  std::string wrong;                // the first thing a GPU would punish; empty while all is well
  std::vector<Recorded> recorded;   // live fences, in order
  std::map<CUstream_st*, StreamWork> streams;
  std::map<CUstream_st*, std::pair<uint64_t, uint64_t>> ranges;             // address ranges by stream, from segments()
  std::map<uint64_t, LiveBlock> live;                                       // by the model's name of the block
};

}  // namespace gpuledger::model
