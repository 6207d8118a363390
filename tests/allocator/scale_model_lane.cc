#include "scale_model_lane.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

namespace gpuledger::scale {
namespace {

thread_local Lane* this_lane = nullptr;

// Runs `visit(word, offset)` over all words of a small block, and over the head, the tail and one word a page of a large one.
template <class Visit>
bool EachWord(const Block& block, Visit&& visit) {
  auto* const words = reinterpret_cast<uint64_t*>(block.address);
  const uint64_t count = block.charged / 8;
  const auto run = [&](uint64_t from, uint64_t to) {
    for (uint64_t i = from; i < to; ++i) {
      if (!visit(words[i], block.stamp * 0x9e3779b97f4a7c15u + i)) return false;
    }
    return true;
  };
  if (count <= 256) return run(0, count);
  if (!run(0, 32) || !run(count - 32, count)) return false;
  for (uint64_t page = 0; page + 512 <= count; page += 512) {
    const uint64_t i = page + (page / 512 * 37) % 512;
    if (i >= 32 && i < count - 32 && !run(i, i + 1)) return false;
  }
  return true;
}

template <class T>
void RaiseTo(std::atomic<T>& peak, T value) {
  T old = peak.load(std::memory_order_relaxed);
  while (old < value && !peak.compare_exchange_weak(old, value)) {
  }
}

}  // namespace

void WritePattern(const Block& block) {
  EachWord(block, [](uint64_t& word, uint64_t value) { return word = value, true; });
}
bool PatternHolds(const Block& block) {
  return EachWord(block, [](const uint64_t& word, uint64_t value) { return word == value; });
}

Stream StreamAt(uint8_t i) {
  if (i == kPerThread) return Stream::PerThread(kDevice);
  if (i == kLegacy) return Stream(kDevice, reinterpret_cast<CUstream_st*>(uintptr_t{1}));
  return Stream(kDevice, reinterpret_cast<CUstream_st*>(uintptr_t{i} * 16));
}

Payer PayerAt(int i) {
  static const OwnerId owners[] = {InternOwner("scale/a"), InternOwner("scale/b"), InternOwner("scale/c.d"), InternOwner("scale/c.e")};
  constexpr Role kRoles[] = {Role::kSource, Role::kQuantized, Role::kActivation};
  return {owners[i % kOwners], kRoles[i / kOwners]};
}

Lane::Lane(World& its_world, int its_number) : world(its_world), number(its_number), slots(world.scene.slots), place_(world.scene.slots) {
  for (uint32_t i = world.scene.slots; i-- > 0;) {
    place_[i] = static_cast<uint32_t>(vacant_.size());
    vacant_.push_back(i);
  }
}

Block Lane::Take(uint32_t slot) {
  const uint32_t at = place_[slot], last = taken_.back();
  taken_[at] = last;
  place_[last] = at;
  taken_.pop_back();
  place_[slot] = static_cast<uint32_t>(vacant_.size());
  vacant_.push_back(slot);
  return std::exchange(slots[slot], Block());
}

void Lane::Put(uint32_t slot, Block block) {
  const uint32_t at = place_[slot], last = vacant_.back();
  vacant_[at] = last;
  place_[last] = at;
  vacant_.pop_back();
  place_[slot] = static_cast<uint32_t>(taken_.size());
  taken_.push_back(slot);
  slots[slot] = std::move(block);
}

void Lane::Do(const Operation& o) {
  this_lane = this;
  const uint32_t slot = o.slot % world.scene.slots;
  CachingAllocator& a = *world.allocator;
  ++clock;
  switch (o.what) {
    case Do::kAllocate:
      if (!taken(slot) && slot != busy_) Allocate(o);
      break;
    case Do::kFree:
      if (taken(slot)) Free(Take(slot));
      break;
    case Do::kUseOn:
      if (taken(slot)) UseOn(o);
      break;
    case Do::kTransfer:
      if (taken(slot)) Transfer(o);
      break;
    case Do::kPass:
      if (world.upstream->fake != nullptr) world.upstream->fake->PassFences(StreamAt(o.stream).Canonical());
      break;
    case Do::kPassAll:
      if (world.upstream->fake != nullptr) world.upstream->fake->PassAllFences();
      break;
    case Do::kFail:
      world.faulty = true;
      world.upstream->FailNext(static_cast<UpstreamCall>(o.call % kUpstreamCallCount), std::max<uint64_t>(o.value, 1));
      break;
    case Do::kCap: SetCap(o.value); break;
    case Do::kSoftCap: SetSoftCap(o); break;
    case Do::kComplete: a.CompletePending(); break;
    case Do::kRelease: {
      a.ReleaseCached();
      if (world.at_once || world.faulty || world.scene.per_thread) break;
      world.ForgetCompleted(a.ledger().live());
      if (const uint64_t held = world.upstream->BytesThatStay(), reserved = a.totals().reserved.count(); held != reserved) {
        world.Wrong(fmt::format("after ReleaseCached {} bytes are reserved, the handles with a live or pending byte are {}", reserved, held));
      }
      break;
    }
    case Do::kReleaseIdle: a.ReleaseIdle(std::chrono::nanoseconds(o.value)); break;
    case Do::kSettle:
      if (const absl::Status settled = a.Settle(); !settled.ok() && !world.faulty && !world.at_once) world.Wrong("Settle failed: " + settled.ToString());
      break;
    case Do::kCreatePool: {
      std::atomic<uint64_t>& pool = world.private_pools[o.pool % kPrivatePools];
      if (pool != 0) break;
      uint64_t none = 0;
      if (const PoolId made = a.CreatePool(); !pool.compare_exchange_strong(none, made.value())) a.ReleasePool(made).IgnoreError();
      break;
    }
    case Do::kReleasePool: {
      std::unique_lock alone(world.pools_mutex);
      uint64_t id = 0;
      {
        std::lock_guard lock(world.mutex);
        id = world.private_pools[o.pool % kPrivatePools].exchange(0);
        if (id != 0) world.released_pools.insert(id);
      }
      if (id != 0 && !a.ReleasePool(PoolId(id)).ok()) world.Wrong("ReleasePool refused a private pool");
      break;
    }
    case Do::kRetire: Retire(o); break;
    case Do::kOnMemory: {
      const auto id = a.OnOutOfMemory([most = o.value](Bytes) { return this_lane != nullptr && this_lane->Relieve(most); });
      const auto near = a.OnNearCap(0.9, [](const Totals& t) {
        if (t.reserved < t.in_use + t.pending) Die("scale model: a callback near the cap was told of less reserved than in use");
      });
      std::lock_guard lock(world.mutex);
      world.callbacks.insert(world.callbacks.end(), {id, near});
      break;
    }
    case Do::kOffMemory: {
      CachingAllocator::CallbackId id = 0;
      {
        std::lock_guard lock(world.mutex);
        if (world.callbacks.empty()) break;
        id = world.callbacks.front();
        world.callbacks.erase(world.callbacks.begin());
      }
      a.RemoveCallback(id);
      break;
    }
    case Do::kRefuse: Refuse(o); break;
    case Do::kResetPeak:
      if (world.at_once) break;
      a.ledger().ResetPeak();
      peak = in_use;
      peak_time = clock;
      std::copy(std::begin(by_payer), std::end(by_payer), payer_peak);
      std::copy(std::begin(by_payer), std::end(by_payer), at_peak);
      break;
    case Do::kGive: {
      if (!taken(slot) || others.empty()) break;
      Lane& to = *others[o.value % others.size()];
      // A stream of this lane's may be retired while another lane has the block: that is fine for its home only.
      const auto own = [](const User& u) { return u.stream >= kSharedStreams; };
      if (std::any_of(slots[slot].others.begin(), slots[slot].others.end(), own)) break;
      Block block = Take(slot);
      Credit(block.payer, block.charged);
      std::lock_guard lock(to.inbox_mutex);
      to.inbox.push_back(std::move(block));
      to.inbox_full = true;
      break;
    }
    case Do::kSwitch:
    case Do::kExit: break;  // the runner's
  }
}

void Lane::TakeIn(Random& random) {
  if (!inbox_full) return;
  std::vector<Block> got;
  {
    std::lock_guard lock(inbox_mutex);
    got.swap(inbox);
    inbox_full = false;
  }
  for (Block& block : got) {
    Charge(block.payer, block.charged);
    if (full() || random.below(4) != 0) {
      world.foreign_frees.fetch_add(1, std::memory_order_relaxed);
      Free(std::move(block));
    } else {
      Put(SomeVacant(random), std::move(block));
    }
  }
}

bool Lane::Relieve(uint64_t most) {
  requested_pool = 0;
  uint64_t freed = 0;
  for (; freed < most && !taken_.empty(); ++freed) Free(Take(taken_.back()));
  world.relieved.fetch_add(freed, std::memory_order_relaxed);
  return freed > 0;
}

void Lane::Charge(int payer, uint64_t charged, bool new_to_owner) {
  const int owner = payer % kOwners;
  const uint64_t before = by_payer[owner] + by_payer[owner + kOwners] + by_payer[owner + 2 * kOwners];
  const uint64_t cap = world.at_once || !new_to_owner ? 0 : world.soft_caps[owner];
  in_use += charged;
  by_payer[payer] += charged;
  if (cap != 0 && before <= cap && before + charged > cap) ++crossings_due;
  payer_peak[payer] = std::max(payer_peak[payer], by_payer[payer]);
}

void Lane::Credit(int payer, uint64_t charged) {
  in_use -= charged;
  by_payer[payer] -= charged;
}

bool Lane::Claim(const Block& block, uint64_t pool) {
  // What is in the way may be pending blocks that are done; another thread may let go of them first.
  for (int tries = 0; !world.claims.Claim(block.address, block.charged); ++tries) {
    if (world.ForgetDone(block.address, block.charged, block.home.stream)) tries = 0;
    if (tries < 2) continue;
    world.Wrong(fmt::format("two live or pending blocks overlap: {} bytes at {:#x}", block.charged, block.address));
    return false;
  }
  for (uint64_t at = block.address; at < block.address + block.charged; at = at / kUnit * kUnit + kUnit) {
    Leaf& leaf = world.claims.At(at);
    const StreamNumber before = leaf.stream.load(std::memory_order_relaxed);
    if (before != block.home.stream) {
      if (const uint64_t last = leaf.last; !world.timeline.Ordered(before, last, block.home.stream)) {
        world.Wrong(fmt::format("stream {} was handed memory that stream {} may still use", block.home.stream, before));
      }
      leaf.stream = block.home.stream;
      leaf.last = 0;
    }
    const uint64_t stamped = leaf.pool.load(std::memory_order_relaxed);
    if (stamped == pool + 1) continue;
    bool fine = stamped == 0;
    if (!fine && stamped > 1 && pool == 0) fine = world.Released(stamped - 1);
    if (!fine) world.Wrong(fmt::format("a block for pool {} lies in memory of pool {}", pool, stamped - 1));
    leaf.pool = pool + 1;
  }
  return true;
}

void Lane::Allocate(const Operation& o) {
  CachingAllocator& a = *world.allocator;
  uint64_t pool = 0;
  std::shared_lock<std::shared_mutex> pool_stays;
  if (o.pool != 0) {
    if (world.at_once) pool_stays = std::shared_lock(world.pools_mutex);
    pool = world.private_pools[(o.pool - 1) % kPrivatePools];
    if (pool == 0) return;
  }
  const bool per_thread = o.stream == kPerThread && this_thread_stream < kMostStreams;
  const uint8_t index = o.stream == kPerThread && !per_thread ? 0 : o.stream;
  const Stream stream = StreamAt(index);
  const uint64_t charged = o.value == 0 ? 0 : SizeClass::For(Bytes(o.value)).charged().count();
  const StreamNumber home = NumberOf(stream);
  const User user{home, world.generations[home].load(std::memory_order_relaxed)};
  world.requests.fetch_add(1, std::memory_order_relaxed);
  if (world.at_once) RaiseTo(world.upper_peak, world.upper.fetch_add(charged) + charged);
  busy_ = o.slot % world.scene.slots;
  requested_pool = pool;
  requesting_stream = home;
  const Payer payer = PayerAt(o.payer % kPayers);
  absl::StatusOr<DevicePtr> address = absl::UnknownError("");
  if (o.payer >= kPayers) {  // the same payer, by nested scopes
    const std::string_view path = OwnerName(payer.owner);
    OwnerScope outer(path.substr(0, 5), Role::kOther);
    OwnerScope scope(path.substr(6), payer.role);
    address = a.AllocateRaw(Bytes(o.value), stream, kNoSite, PoolId(pool));
  } else {
    OwnerScope scope(payer);
    address = a.AllocateRaw(Bytes(o.value), stream, kNoSite, PoolId(pool));
  }
  requested_pool = 0;
  requesting_stream = kNoStream;
  busy_ = ~uint32_t{0};
  if (!address.ok() || o.value == 0) {
    if (world.at_once) world.upper.fetch_sub(charged);
    if (!address.ok()) return Refused(o, address.status());
    if (!address->is_null()) world.Wrong("zero bytes have an address");
    return;
  }
  if (world.at_once) RaiseTo(world.lower_peak, world.lower.fetch_add(charged) + charged);
  Block block{address->address(), o.value, charged, world.stamps.fetch_add(1, std::memory_order_relaxed) + 1, clock, pool, user, {},
              static_cast<uint8_t>(o.payer % kPayers), -1};
  if (home >= kSharedStreams) block.owner_lane = number;
  if (block.address % kGranule != 0) world.Wrong("a block is not aligned");
  if (!Claim(block, pool)) return;
  if (world.host) WritePattern(block);
  Charge(block.payer, charged);
  if (in_use > peak) {
    peak = in_use;
    peak_time = clock;
    std::copy(std::begin(by_payer), std::end(by_payer), at_peak);
  }
  Put(o.slot % world.scene.slots, std::move(block));
  if (!world.at_once && crossings_due != world.crossings_told) world.Wrong("a soft cap was crossed unheard, or heard of uncrossed");
}

void Lane::Refused(const Operation& o, const absl::Status& status) {
  world.refusals.fetch_add(1, std::memory_order_relaxed);
  if (absl::IsNotFound(status)) {
    return world.Wrong("a pool that is there was not found: " + status.ToString());
  }
  if (!absl::IsResourceExhausted(status) && !absl::IsInternal(status)) return world.Wrong("refused with " + status.ToString());
  if (absl::IsInternal(status) && !world.faulty) return world.Wrong("refused with " + status.ToString());
  if (world.at_once) return;
  CheckUnchanged("a request that failed");
  // No fragmentation can refuse a block of at most one handle while a whole new one may still be made.
  const uint64_t reserved = world.allocator->totals().reserved.count();
  if (!world.faulty && o.value <= kUnit && reserved + kUnit <= std::min(world.cap, world.scene.memory)) {
    world.Wrong(fmt::format("{} bytes were refused with {} reserved, cap {}: {}", o.value, reserved, world.cap, status.ToString()));
  }
}

void Lane::CheckUnchanged(std::string_view after) {
  world.allocator->ledger().Flush();
  if (const uint64_t says = world.allocator->ledger().usage().in_use.count(); says != in_use) {
    world.Wrong(fmt::format("after {} the ledger has {} bytes in use, the naive map {}", after, says, in_use));
  }
}

uint64_t Lane::WorkOf(User user) {
  if (world.generations[user.stream].load(std::memory_order_acquire) == user.generation) return world.timeline.Queue(user.stream);
  return user.stream >= kOrdinaryStreams ? world.timeline.queued(user.stream) : 0;  // nothing more after it was retired
}

void Lane::NoteWork(const Block& block) {
  const uint64_t work = WorkOf(block.home);
  for (uint64_t at = block.address; at < block.address + block.charged; at = at / kUnit * kUnit + kUnit) {
    Leaf& leaf = world.claims.At(at);
    // The pools of a stream that is gone may be another's by now: its blocks in use bring no work along.
    if (leaf.stream.load(std::memory_order_relaxed) != block.home.stream) continue;
    if (world.at_once) {
      RaiseTo(leaf.last, work);
    } else if (leaf.last.load(std::memory_order_relaxed) < work) {
      leaf.last.store(work, std::memory_order_relaxed);
    }
  }
}

void Lane::Free(Block block) {
  if (world.host && !PatternHolds(block)) world.Wrong(fmt::format("a word of a live block changed: {} bytes at {:#x}", block.charged, block.address));
  // Its stream belongs to another lane, which may retire it: not now.
  std::shared_lock<std::shared_mutex> keep;
  if (world.at_once && block.owner_lane >= 0 && block.owner_lane != number) {
    for (Lane* lane : others) {
      if (lane->number == block.owner_lane) keep = std::shared_lock(lane->order);
    }
  }
  std::shared_lock<std::shared_mutex> pool_stays;
  if (world.at_once && block.pool != 0) pool_stays = std::shared_lock(world.pools_mutex);
  if (block.pool != 0 && world.Released(block.pool)) {
    block.others.push_back(block.home);  // it is freed after its own stream, whoever has the memory around it then
  } else {
    NoteWork(block);
  }
  if (block.others.empty()) {
    world.claims.Unclaim(block.address, block.charged);
  } else {
    PendingBlock pending;
    pending.size = block.charged;
    for (const User& user : block.others) pending.work.emplace_back(user.stream, WorkOf(user));
    std::lock_guard lock(world.mutex);
    world.pending[block.address] = std::move(pending);
  }
  if (world.at_once) world.lower.fetch_sub(block.charged);
  world.allocator->Free(DevicePtr(kDevice, block.address));
  if (world.at_once) world.upper.fetch_sub(block.charged);
  Credit(block.payer, block.charged);
}

void Lane::UseOn(const Operation& o) {
  Block& block = slots[o.slot % world.scene.slots];
  if (o.stream == kPerThread && this_thread_stream >= kMostStreams) return;
  const Stream stream = StreamAt(o.stream);
  if (!world.allocator->RecordStream(DevicePtr(kDevice, block.address), stream).ok()) world.Wrong("RecordStream refused a block in use");
  const StreamNumber by = NumberOf(stream);
  const User user{by, world.generations[by].load(std::memory_order_relaxed)};
  const auto same = [&](const User& u) { return u.stream == user.stream && u.generation == user.generation; };
  if (!same(block.home) && std::none_of(block.others.begin(), block.others.end(), same)) block.others.push_back(user);
}

void Lane::Transfer(const Operation& o) {
  Block& block = slots[o.slot % world.scene.slots];
  const int to = o.payer % kPayers;
  if (!world.allocator->Transfer(DevicePtr(kDevice, block.address), PayerAt(to)).ok()) world.Wrong("Transfer refused a block in use");
  if (block.born <= peak_time) {
    at_peak[block.payer] -= world.at_once ? 0 : block.charged;
    at_peak[to] += world.at_once ? 0 : block.charged;
  }
  Credit(block.payer, block.charged);
  Charge(to, block.charged, to % kOwners != block.payer % kOwners);
  block.payer = static_cast<uint8_t>(to);
  if (!world.at_once && crossings_due != world.crossings_told) world.Wrong("a soft cap was crossed unheard by a transfer, or heard of uncrossed");
}

void Lane::Refuse(const Operation& o) {
  CachingAllocator& a = *world.allocator;
  absl::StatusOr<DevicePtr> got = absl::UnknownError("");
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  switch (o.value % 4) {
    case 0: got = a.AllocateRaw(Bytes(uint64_t{1} << 50), StreamAt(o.stream)), code = absl::StatusCode::kResourceExhausted; break;
    case 1: got = a.AllocateRaw(Bytes((uint64_t{1} << 62) + 1), StreamAt(o.stream)); break;
    case 2: got = a.AllocateRaw(Bytes(512u), Stream::Default(DeviceId(7))); break;
    case 3: got = a.AllocateRaw(Bytes(512u), StreamAt(o.stream), kNoSite, PoolId(uint64_t{1} << 40)), code = absl::StatusCode::kNotFound; break;
  }
  if (got.ok()) return world.Wrong("a request that must fail did not");
  if (got.status().code() != code && !(world.faulty && absl::IsInternal(got.status()))) world.Wrong("a request that must fail: " + got.status().ToString());
  if (!world.at_once) CheckUnchanged("a request that must fail");
}

void Lane::Retire(const Operation& o) {
  const Stream stream = StreamAt(o.stream);
  std::unique_lock lock(order);
  const absl::Status status = world.allocator->RetireStream(stream);
  if (status.ok()) {
    world.generations[NumberOf(stream)].fetch_add(1);
  } else if (!world.faulty) {
    world.Wrong("RetireStream failed: " + status.ToString());
  }
}

void Lane::SetCap(uint64_t cap) {
  std::lock_guard lock(world.cap_mutex);
  world.upstream->limit = std::max(cap, world.cap);
  world.allocator->set_cap(Bytes(cap));
  world.cap = cap;
  world.upstream->limit = cap;
}

void Lane::SetSoftCap(const Operation& o) {
  const int owner = o.payer % kOwners;
  std::function<void(const SoftCapCrossing&)> told;
  if (o.value != 0) {
    told = [this](const SoftCapCrossing& crossing) {
      world.crossings_told.fetch_add(1);
      if (crossing.in_use <= crossing.cap) world.Wrong("a crossing of a soft cap says that the owner is below it");
    };
  }
  world.allocator->ledger().set_soft_cap(PayerAt(owner).owner, Bytes(o.value), std::move(told));
  std::lock_guard lock(world.mutex);
  world.soft_caps[owner] = o.value;
}

}  // namespace gpuledger::scale
