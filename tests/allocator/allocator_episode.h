// The model test's episodes: random operations, injected failures and held fences against a naive map, over any upstream;
// the equations after each operation.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "allocator_model.h"

namespace gpuledger::model {

constexpr int kStreams = 3;
constexpr int kPayers = 6;
constexpr Bytes kHandle = 2_MiB;
constexpr Bytes kMemory = 24_MiB;  // what an episode lives in
inline const DeviceId kDevice{0};

inline Stream StreamAt(int i) { return Stream(kDevice, reinterpret_cast<CUstream_st*>(static_cast<uintptr_t>(i) * 16)); }

inline Payer PayerAt(int i) {
  static const OwnerId owners[] = {InternOwner("model/a"), InternOwner("model/b"), InternOwner("model/c")};
  return {owners[i % 3], i < 3 ? Role::kSource : Role::kQuantized};
}

// What the allocator should hold, in the plainest form.
struct NaiveBlock {
  DevicePtr address;
  uint64_t requested, charged;
  int stream, payer;
  std::set<int> others;  // streams that use it beside its own
  bool freed = false;
};

// What an episode runs on: an upstream, and what it may take of it.
struct World {
  Upstream& upstream;
  FakeUpstream* fake = nullptr;          // if it is a fake
  std::function<void(Stream)> pass = {};  // lets the held fences of a stream pass
  Bytes cap = Bytes::Max();               // of the allocator, at the beginning
  bool fences_wait = true;                // until they are told or waited for: no fence passes by itself
};

class Episode {
 public:
  explicit Episode(const World& its_world)
      : world(its_world), upstream(world.upstream, world.fake), allocator_owned(std::make_unique<CachingAllocator>(upstream, Options())),
        allocator(*allocator_owned), cap(world.cap) {
    upstream.pass = world.pass;
  }

  // Empty if all held; else what did not.
  std::string Do(const Operation& operation) {
    std::visit([this](auto o) { Step(o); }, operation);
    return Check();
  }
  // Everything goes back, whatever failed before. Empty if nothing is left.
  std::string Finish() {
    upstream.ClearFaults();
    for (auto& [id, block] : blocks) {
      if (!block.freed) allocator.Free(block.address);
    }
    upstream.live.clear();
    allocator_owned.reset();
    if (!upstream.handles.empty() || !upstream.mapped.empty() || upstream.live_ranges != 0) return "the allocator left memory or addresses behind";
    return upstream.recorded.empty() ? "" : "the allocator left a fence behind";
  }
  uint64_t requests = 0;
  std::map<uint64_t, NaiveBlock> blocks;  // in use and pending

 private:
  AllocatorOptions Options() const {
    AllocatorOptions options;
    options.cap = world.cap;
    return options;
  }

  void Step(Allocate o) {
    const uint64_t id = requests++;
    OwnerScope scope(PayerAt(o.payer));
    upstream.requester = StreamAt(o.stream).raw();
    const absl::StatusOr<DevicePtr> address = allocator.AllocateRaw(Bytes(o.size), StreamAt(o.stream));
    NoteRanges();
    if (!address.ok()) {
      if (!absl::IsResourceExhausted(address.status()) && !absl::IsInternal(address.status())) failure = address.status().ToString();
      if (absl::IsResourceExhausted(address.status()) && !faulty && Fits(o)) failure = "refused although it fits: " + address.status().ToString();
      return;
    }
    const uint64_t charged = SizeClass::For(Bytes(o.size)).charged().count();
    const uint64_t begin = address->address();
    for (const auto& [other, block] : upstream.live) {
      if (block.begin < begin + charged && block.end > begin) failure = "two live blocks overlap";
    }
    uint64_t covered = begin;  // of [begin, begin + charged), by mappings in the order of their addresses
    for (const auto& [at, mapping] : upstream.mapped) {
      if (at <= covered && !mapping.dead) covered = std::max(covered, at + mapping.size);
    }
    if (covered < begin + charged) failure = "a block lies on unmapped addresses";
    blocks.emplace(id, NaiveBlock{*address, o.size, charged, o.stream, o.payer, {}, false});
    upstream.live[id] = {begin, begin + charged, false, {}};
    upstream.streams[StreamAt(o.stream).raw()].queued += 1;
  }
  // No fragmentation can refuse a block of at most one handle while a whole new handle may still be mapped.
  bool Fits(Allocate o) {
    const Totals t = allocator.totals();
    const Bytes handle = upstream.granularity();
    return o.size <= handle.count() && t.reserved + handle <= std::min(cap, kMemory);
  }
  void Step(Free o) {
    const auto found = blocks.find(o.block);
    if (found == blocks.end() || found->second.freed) return;
    NaiveBlock& block = found->second;
    std::set<uint64_t> before;
    for (const auto& r : upstream.recorded) before.insert(r.fence.value());
    upstream.streams[StreamAt(block.stream).raw()].queued += 1;
    if (block.others.empty()) upstream.live.erase(o.block);
    allocator.Free(block.address);
    if (block.others.empty()) {
      blocks.erase(found);
      return;
    }
    block.freed = true;
    WatchedUpstream::LiveBlock& live = upstream.live[o.block];
    live.freed = true;
    for (const auto& r : upstream.recorded) {
      if (!before.count(r.fence.value())) live.fences.insert(r.fence.value());
    }
    if (live.fences.size() != block.others.size()) failure = "a free recorded another number of fences than streams used the block";
  }
  void Step(UseOn o) {
    const auto found = blocks.find(o.block);
    if (found == blocks.end() || found->second.freed) return;
    if (!allocator.RecordStream(found->second.address, StreamAt(o.stream)).ok()) failure = "RecordStream refused a block in use";
    if (o.stream != found->second.stream) found->second.others.insert(o.stream);
  }
  void Step(Transfer o) {
    const auto found = blocks.find(o.block);
    if (found == blocks.end() || found->second.freed) return;
    if (!allocator.Transfer(found->second.address, PayerAt(o.payer)).ok()) failure = "Transfer refused a block in use";
    if (live_at_peak.count(o.block)) live_at_peak[o.block].second = o.payer;
    found->second.payer = o.payer;
  }
  void Step(Pass o) { upstream.PassFences(StreamAt(o.stream)); }
  void Step(Fail o) {
    faulty = true;
    upstream.FailNext(static_cast<UpstreamCall>(o.call), o.call == static_cast<int>(UpstreamCall::kCreate)
                               ? absl::ResourceExhaustedError("injected") : absl::InternalError("injected"), o.nth);
  }
  void Step(Cap o) {
    cap = kHandle * o.handles;
    allocator.set_cap(cap);
  }
  void Step(Complete) {
    allocator.CompletePending();
    if (!world.fences_wait) return;  // one may have passed since it was asked for
    for (const auto& [id, block] : upstream.live) {
      for (const uint64_t fence : block.fences) {
        const auto live = std::find_if(upstream.recorded.begin(), upstream.recorded.end(), [&](const auto& r) { return r.fence.value() == fence; });
        if (live != upstream.recorded.end() && *upstream.inner.PollFence(live->fence)) failure = "CompletePending left a passed fence";
      }
    }
  }
  void Step(Release) { allocator.ReleaseCached(); }
  void Step(Settle) {
    if (!allocator.Settle().ok()) failure = "Settle failed";
  }

  void NoteRanges() {
    if (upstream.ranges.size() == static_cast<size_t>(upstream.live_ranges)) return;
    for (const SegmentInfo& s : allocator.segments()) {
      upstream.ranges[s.range.base.address()] = {s.range.base.address() + s.range.size.count(), s.stream.raw()};
    }
  }

  // Blocks whose fences are all dropped have completed; everything else is recomputed and compared.
  std::string Check() {
    std::erase_if(blocks, [this](const auto& named) { return named.second.freed && !upstream.live.count(named.first); });
    if (!failure.empty()) return failure;
    if (!upstream.wrong.empty()) return upstream.wrong;
    if (absl::Status s = allocator.CheckInvariants(); !s.ok()) return s.ToString();

    uint64_t in_use = 0, pending = 0;
    uint64_t by_payer[kPayers] = {};
    for (const auto& [id, block] : blocks) {
      (block.freed ? pending : in_use) += block.charged;
      if (!block.freed) by_payer[block.payer] += block.charged;
    }
    if (in_use > peak) {
      peak = in_use;
      live_at_peak.clear();
      for (const auto& [id, block] : blocks) {
        if (!block.freed) live_at_peak[id] = {block.charged, block.payer};
      }
    }
    uint64_t at_peak[kPayers] = {};
    for (const auto& [id, what] : live_at_peak) at_peak[what.second] += what.first;

    const Ledger& ledger = allocator.ledger();
    const Usage usage = ledger.usage();
    if (usage.in_use.count() != in_use || usage.pending.count() != pending || usage.peak.count() != peak) {
      return fmt::format("the ledger says in_use {}, pending {}, peak {}; the naive map {}, {}, {}", usage.in_use.count(), usage.pending.count(),
                         usage.peak.count(), in_use, pending, peak);
    }
    for (int i = 0; i < kPayers; ++i) {
      const Usage mine = ledger.usage(PayerAt(i).owner, PayerAt(i).role);
      if (mine.in_use.count() != by_payer[i]) return fmt::format("payer {} has {} in use, the naive map {}", i, mine.in_use.count(), by_payer[i]);
      if (mine.at_device_peak.count() != at_peak[i]) {
        return fmt::format("payer {} had {} live at the peak, the naive map {}", i, mine.at_device_peak.count(), at_peak[i]);
      }
    }
    const Totals t = allocator.totals();
    if (t.reserved > std::max(cap, reserved_before)) return "reserved grew beyond the cap";
    reserved_before = t.reserved;
    if (t.reserved.count() != upstream.bytes_mapped()) return "reserved is not what is mapped";
    if (t.reserved.count() != upstream.bytes_created() && !faulty) return "a handle is mapped nowhere";
    return "";
  }

  const World world;
  WatchedUpstream upstream;
  std::unique_ptr<CachingAllocator> allocator_owned;
  CachingAllocator& allocator;
  Bytes cap;
  Bytes reserved_before;
  bool faulty = false;
  std::string failure;
  uint64_t peak = 0;
  std::map<uint64_t, std::pair<uint64_t, int>> live_at_peak;  // block -> bytes, payer (its present name)
};

// Runs a sequence; the first failure, with the operations up to it as a regression.
inline void Replay(const std::vector<Operation>& operations, const World& world) {
  Episode episode(world);
  for (size_t i = 0; i < operations.size(); ++i) {
    const std::string failure = episode.Do(operations[i]);
    if (!failure.empty()) {
      FAIL() << failure << "\n" << AsRegression({operations.begin(), operations.begin() + static_cast<std::ptrdiff_t>(i) + 1});
    }
  }
  const std::string left = episode.Finish();
  EXPECT_TRUE(left.empty()) << left << "\n" << AsRegression(operations);
}

inline uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

inline std::vector<Operation> RandomEpisode(std::mt19937_64& random, size_t length) {
  const auto below = [&random](uint64_t n) { return random() % n; };
  std::vector<Operation> operations;
  uint64_t requests = 0;
  const bool with_faults = below(2) == 0;
  // Recent blocks mostly, so that frees hit.
  const auto some_block = [&] { return requests == 0 ? 0 : requests - 1 - below(std::min<uint64_t>(requests, 24)); };
  while (operations.size() < length) {
    const uint64_t dice = below(100);
    if (dice < 38) {
      const uint64_t size = below(4) == 0 ? 1 + below(3u << 20) : 1 + below(uint64_t{1} << below(19));
      operations.push_back(Allocate{size, static_cast<int>(below(kStreams)), static_cast<int>(below(kPayers))});
      ++requests;
    } else if (dice < 72) {
      operations.push_back(Free{some_block()});
    } else if (dice < 80) {
      operations.push_back(UseOn{some_block(), static_cast<int>(below(kStreams))});
    } else if (dice < 85) {
      operations.push_back(Transfer{some_block(), static_cast<int>(below(kPayers))});
    } else if (dice < 90) {
      operations.push_back(Pass{static_cast<int>(below(kStreams))});
    } else if (dice < 94) {
      operations.push_back(Complete{});
    } else if (dice < 95) {
      operations.push_back(Release{});
    } else if (dice < 96) {
      operations.push_back(Settle{});
    } else if (dice < 98) {
      operations.push_back(Cap{1 + below(12)});
    } else if (with_faults) {
      const UpstreamCall calls[] = {UpstreamCall::kReserve, UpstreamCall::kCreate, UpstreamCall::kMap, UpstreamCall::kUnmap, UpstreamCall::kRelease,
                                    UpstreamCall::kUnreserve, UpstreamCall::kStreamWait};
      operations.push_back(Fail{static_cast<int>(calls[below(7)]), 1 + below(4)});
    }
  }
  return operations;
}

// Random episodes, `make` giving a world for each. GPULEDGER_MODEL_OPERATIONS overrides how many operations, and
// GPULEDGER_MODEL_SEED repeats a run. A failing episode is printed as a call of Replay(), to be pasted as a regression.
template <class Make>
void RunModel(uint64_t operations, Make&& make) {
  const uint64_t seed = FromEnvironment("GPULEDGER_MODEL_SEED", std::random_device{}());
  const uint64_t total = FromEnvironment("GPULEDGER_MODEL_OPERATIONS", operations);
  constexpr size_t kLength = 400;
  std::printf("seed: GPULEDGER_MODEL_SEED=%llu, %llu operations\n", static_cast<unsigned long long>(seed), static_cast<unsigned long long>(total));
  std::mt19937_64 random(seed);
  for (uint64_t done = 0; done < total && !::testing::Test::HasFailure(); done += kLength) make(RandomEpisode(random, kLength));
}

}  // namespace gpuledger::model
