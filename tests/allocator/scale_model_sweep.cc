// The full comparison: every block, charge, total and byte against the naive map.
#include <algorithm>

#include <fmt/format.h>

#include "scale_model_lane.h"

namespace gpuledger::scale {
namespace {

std::unique_ptr<Upstream> Make(const Scene& scene) {
  switch (scene.on) {
    case On::kHostAnonymous: return std::make_unique<HostAnonymousUpstream>(Bytes(scene.memory));
    case On::kHostMemfd: return std::make_unique<HostMemfdUpstream>(Bytes(scene.memory));
    default: break;
  }
  FakeOptions options;
  options.total = Bytes(scene.memory);
  options.hold_fences = scene.hold;
  options.aliasing = scene.on == On::kFake;
  options.mapping = scene.on != On::kFakeWholeRanges;
  return std::make_unique<FakeUpstream>(options);
}

AllocatorOptions OptionsOf(const Scene& scene) {
  AllocatorOptions options;
  options.cap = Bytes(scene.cap);
  options.release_after = std::chrono::nanoseconds(scene.release_after);
  return options;
}

}  // namespace

World::World(const Scene& its_scene, bool is_at_once)
    : scene(its_scene), at_once(is_at_once), claims(!is_at_once), inner(Make(scene)),
      upstream(std::make_unique<StrictUpstream>(*inner, dynamic_cast<FakeUpstream*>(inner.get()), claims, timeline)),
      host(inner->capabilities().host_accessible), cap(scene.cap) {
  upstream->wrong = [this](std::string what) { Wrong(what); };
  upstream->pool_released = [this](uint64_t id) { return Released(id); };
  upstream->lies_on = [this](uint64_t begin, uint64_t size, StreamNumber after) {
    if (!claims.AnyClaimed(begin, size)) return false;
    ForgetDone(begin, size, after);
    return claims.AnyClaimed(begin, size);
  };
  upstream->may_drop_early = [this] { return faulty.load(); };
  upstream->limit = scene.cap;
  allocator = std::make_unique<CachingAllocator>(*upstream, OptionsOf(scene));
}

World::~World() = default;

void World::Wrong(const std::string& what) {
  std::lock_guard lock(failure_mutex_);
  if (failure_.empty()) failure_ = what;
  failed_.store(true, std::memory_order_release);
}

std::string World::failure() {
  std::lock_guard lock(failure_mutex_);
  return failure_;
}

void World::StartThread() {
  births.fetch_add(1, std::memory_order_relaxed);
  this_thread_stream = std::min(next_thread_stream.fetch_add(1), kMostStreams);
}

void World::EndThread() {
  if (this_thread_stream < kMostStreams) generations[this_thread_stream].fetch_add(1, std::memory_order_acq_rel);
}

bool World::Released(uint64_t pool) {
  std::lock_guard lock(mutex);
  return released_pools.count(pool) == 1;
}

bool World::Done(const PendingBlock& block, StreamNumber after) {
  return std::all_of(block.work.begin(), block.work.end(), [&](const auto& w) {
    return timeline.Done(w.first, w.second) || (after != kNoStream && timeline.Ordered(w.first, w.second, after));
  });
}

bool World::ForgetDone(uint64_t begin, uint64_t size, StreamNumber after) {
  std::lock_guard lock(mutex);
  bool any = false;
  auto it = pending.upper_bound(begin);
  if (it != pending.begin()) --it;
  while (it != pending.end() && it->first < begin + size) {
    if (it->first + it->second.size <= begin || !Done(it->second, after)) {
      ++it;
      continue;
    }
    claims.Unclaim(it->first, it->second.size);
    let_go[it->first] = it->second.size;
    it = pending.erase(it);
    any = true;
  }
  return any;
}

void World::ForgetCompleted(const std::vector<LiveAllocation>& live) {
  std::lock_guard lock(mutex);
  std::map<uint64_t, uint64_t> still_let_go;
  std::set<uint64_t> still;
  for (const LiveAllocation& l : live) {
    if (!l.pending) continue;
    const uint64_t at = l.address.address();
    const auto found = pending.find(at);
    const auto gone = let_go.find(at);
    if (found != pending.end() && found->second.size == l.charged.count()) {
      still.insert(at);
    } else if (gone != let_go.end() && gone->second == l.charged.count()) {
      still_let_go.insert(*gone);
    } else {
      return Wrong("the ledger has a pending block that nobody freed");
    }
  }
  let_go = std::move(still_let_go);
  // What the ledger does not have any more was completed. Its granules stay claimed until its streams are done, or one that
  // comes after them is handed the memory.
  std::erase_if(pending, [&](const auto& entry) {
    const auto& [at, block] = entry;
    if (still.count(at) == 1 || !Done(block, kNoStream)) return false;
    claims.Unclaim(at, block.size);
    return true;
  });
}

void World::Sweep(const std::vector<Lane*>& lanes) {
  sweeps.fetch_add(1, std::memory_order_relaxed);
  if (absl::Status s = allocator->CheckInvariants(); !s.ok()) return Wrong(s.ToString());

  std::vector<const Block*> naive;
  uint64_t in_use = 0, by_payer[kPayers] = {};
  const auto add = [&](const Block& block) {
    naive.push_back(&block);
    in_use += block.charged;
    by_payer[block.payer] += block.charged;
    if (host && !PatternHolds(block)) Wrong("a word of a live block changed");
  };
  for (const Lane* lane : lanes) {
    for (const Block& block : lane->slots) {
      if (block.charged != 0) add(block);
    }
    for (const Block& block : lane->inbox) add(block);
  }
  std::sort(naive.begin(), naive.end(), [](const Block* a, const Block* b) { return a->address < b->address; });

  std::vector<LiveAllocation> live = allocator->ledger().live();
  std::sort(live.begin(), live.end(), [](const auto& a, const auto& b) { return a.address.address() < b.address.address(); });
  ForgetCompleted(live);
  uint64_t pending_bytes = 0, pending_count = 0;
  size_t next = 0;
  for (const LiveAllocation& l : live) {
    const uint64_t at = l.address.address();
    if (l.pending) {
      pending_bytes += l.charged.count();
      ++pending_count;
      continue;
    }
    if (next == naive.size()) return Wrong(fmt::format("the ledger has a charge too many, of {} bytes at {:#x}", l.charged.count(), at));
    const Block& block = *naive[next++];
    const Payer payer = PayerAt(block.payer);
    const bool right_stream = block.home.stream >= kOrdinaryStreams ? l.stream.per_thread() : NumberOf(l.stream) == block.home.stream;
    if (block.address != at || block.charged != l.charged.count() || block.requested != l.requested.count() || payer.owner != l.payer.owner ||
        payer.role != l.payer.role || !right_stream) {
      return Wrong(fmt::format("the ledger has {} bytes for {} at {:#x}, the naive map {} for {} at {:#x}", l.requested.count(), OwnerName(l.payer.owner), at,
                               block.requested, OwnerName(payer.owner), block.address));
    }
  }
  if (next != naive.size()) return Wrong("a live block has no charge");
  allocator->ledger().Flush();
  const Usage usage = allocator->ledger().usage();
  const Totals t = allocator->totals();
  if (usage.in_use.count() != in_use || usage.count != naive.size() || usage.pending.count() != pending_bytes || usage.pending_count != pending_count) {
    return Wrong(fmt::format("the ledger says in_use {}, pending {}; the naive map {}, {}", usage.in_use.count(), usage.pending.count(), in_use, pending_bytes));
  }
  if (t.in_use != usage.in_use || t.pending != usage.pending || t.reserved != t.in_use + t.pending + t.cached) return Wrong("the totals do not add up");
  const uint64_t created = upstream->created;
  if (t.reserved.count() != created && !(faulty && t.reserved.count() < created)) {
    return Wrong(fmt::format("{} bytes are reserved, the upstream's handles have {}", t.reserved.count(), created));
  }
  for (int i = 0; i < kPayers; ++i) {
    const Usage mine = allocator->ledger().usage(PayerAt(i).owner, PayerAt(i).role);
    if (mine.in_use.count() != by_payer[i]) return Wrong(fmt::format("payer {} has {} in use, the naive map {}", i, mine.in_use.count(), by_payer[i]));
    if (at_once) continue;
    const Lane& lane = *lanes[0];
    if (mine.peak.count() != lane.payer_peak[i]) return Wrong(fmt::format("payer {} has a peak of {}, the naive map {}", i, mine.peak.count(), lane.payer_peak[i]));
    if (mine.at_device_peak.count() != lane.at_peak[i]) {
      return Wrong(fmt::format("payer {} had {} live at the peak, the naive map {}", i, mine.at_device_peak.count(), lane.at_peak[i]));
    }
  }
  const uint64_t peak = usage.peak.count();
  if (!at_once && peak != lanes[0]->peak) return Wrong(fmt::format("the peak is {}, the naive map's {}", peak, lanes[0]->peak));
  if (at_once && (peak < lower_peak || peak > upper_peak)) {
    return Wrong(fmt::format("the peak is {}, not within {} and {}", peak, lower_peak.load(), upper_peak.load()));
  }
}

void World::Finish(const std::vector<Lane*>& lanes) {
  upstream->ClearFaults();
  for (Lane* lane : lanes) {
    lane->Relieve(~uint64_t{0});
    for (const Block& block : lane->inbox) {
      claims.Unclaim(block.address, block.charged);
      allocator->Free(DevicePtr(kDevice, block.address));
    }
    lane->inbox.clear();
  }
  for (const auto& [begin, block] : pending) claims.Unclaim(begin, block.size);
  pending.clear();
  for (const auto& pool : private_pools) released_pools.insert(pool);  // they end with the allocator
  allocator.reset();
  if (!upstream->Empty()) Wrong("the allocator left memory, addresses or fences behind");
}

}  // namespace gpuledger::scale
