// Blocks in use, by their address: claimed, used by other streams, re-tagged, found; and addresses that are none.
#include <algorithm>
#include <cstdio>

#include <sched.h>

#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {

namespace {

// Takes a block out of *in use*, and waits while another thread looks at it. False if it is not in use.
bool StepOut(Block* block, FrontState to) {
  FrontState state = FrontState::kInUse;
  while (!block->front.state.compare_exchange_weak(state, to, std::memory_order_acquire, std::memory_order_relaxed)) {
    if (state != FrontState::kInUse && state != FrontState::kBusy) return false;
    if (state == FrontState::kBusy) sched_yield();
    state = FrontState::kInUse;
  }
  return true;
}

}  // namespace

Block* CachingAllocator::Impl::Claim(DevicePtr address, FrontState to) const {
  Block* const block = address.device() == device ? blocks.Find(address.address()) : nullptr;
  if (block == nullptr || block->front.address.load(std::memory_order_relaxed) != address.address()) return nullptr;
  if (!StepOut(block, to)) return nullptr;
  // While this thread looked, the block may have become another one, in use elsewhere.
  if (block->front.address.load(std::memory_order_relaxed) == address.address()) return block;
  block->front.state.store(FrontState::kInUse, std::memory_order_release);
  return nullptr;
}

bool CachingAllocator::Owns(DevicePtr address) const noexcept {
  const Impl& a = *impl_;
  const Block* const block = address.device() == a.device ? a.blocks.Find(address.address()) : nullptr;
  if (block == nullptr || block->front.address.load(std::memory_order_relaxed) != address.address()) return false;
  const FrontState state = block->front.state.load(std::memory_order_relaxed);
  return state == FrontState::kInUse || state == FrontState::kBusy;
}

namespace {

// A block that is looked at: nobody frees it meanwhile.
class Busy {
 public:
  explicit Busy(Block* block) : block_(block) {}
  ~Busy() {
    if (block_ != nullptr) block_->front.state.store(FrontState::kInUse, std::memory_order_release);
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  explicit operator bool() const { return block_ != nullptr; }
  Block* operator->() const { return block_; }
  Block* get() const { return block_; }

 private:
  Block* const block_;
};

}  // namespace

absl::Status CachingAllocator::RecordStream(DevicePtr address, Stream stream) {
  Impl& a = *impl_;
  if (stream.device() != a.device) {
    return absl::InvalidArgumentError(fmt::format("RecordStream: the stream is of device {}, the block of device {}",
                                                  stream.device().value(), a.device.value()));
  }
  const Busy block(a.Claim(address, FrontState::kBusy));
  if (!block) return absl::NotFoundError(fmt::format("RecordStream: no block in use starts at {:#x}", address.address()));
  const StreamKey key = StreamKey::Of(stream);
  const uint8_t uses = block->front.uses.load(std::memory_order_relaxed);
  // Of a block that outlives its stream no stream is the own one: one with that handle is another one.
  if ((uses & kOutlives) == 0 && key == StreamKey::Of(*block->front.charge)) return absl::OkStatus();
  a.pending.NoteUse(block.get(), key);
  block->front.uses.store(uses | kUsedElsewhere, std::memory_order_relaxed);
  return absl::OkStatus();
}

void CachingAllocator::Impl::MarkOutliving(const StreamPools& pools, bool fenced) {
  std::vector<Block*> taken;
  for (const auto& pool : placement.pools()) {
    if (&pool->use() != &pools.use) continue;
    MutexLock lock(pool->mutex);
    for (Block* b = pool->first(); b != nullptr; b = b->right) {
      if (b->taken()) taken.push_back(b);
    }
  }
  for (Block* b : taken) {
    const Busy block(StepOut(b, FrontState::kBusy) ? b : nullptr);
    if (!block) continue;  // in a cache, or freed by now
    const StreamKey own = StreamKey::Of(*b->front.charge);
    if (fenced) pending.NoteUse(b, streams_may_vanish ? own.OutOfReach() : own);
    b->front.uses.fetch_or(kOutlives | (fenced ? kUsedElsewhere : 0), std::memory_order_relaxed);
  }
}

absl::Status CachingAllocator::Transfer(DevicePtr address, Payer to) {
  Ledger::Impl& ledger = impl_->ledger;
  Ledger::Shard& shard = ledger.MyShard();
  {
    const Busy block(impl_->Claim(address, FrontState::kBusy));
    if (!block) return absl::NotFoundError(fmt::format("Transfer: no block in use starts at {:#x}", address.address()));
    ledger.Transfer(shard, *block->front.charge, to);
  }
  ledger.Tell(shard);  // who is told may use the block
  return absl::OkStatus();
}

absl::StatusOr<LiveAllocation> CachingAllocator::Find(DevicePtr address) const {
  Impl& a = *impl_;
  MutexLock lock(a.growth);
  if (const Block* block = a.TakenBlockHolding(address)) {
    const AllShardsHeld held(a.ledger_owned);
    if (const Charge::Entry* charge = block->front.charge) return charge->info();
  }
  return absl::NotFoundError(fmt::format("no block in use or pending holds {:#x}", address.address()));
}

Block* CachingAllocator::Impl::TakenBlockHolding(DevicePtr address) const {
  if (address.device() != device) return nullptr;
  for (const auto& pool : placement.pools()) {
    const Range range = pool->range();
    const uint64_t base = range.base.address();
    if (address.address() < base || address.address() - base >= range.size.count()) continue;
    MutexLock lock(pool->mutex);
    for (uint64_t at = address.address();;) {
      const AddressMap::Entry entry = blocks.FindAtOrBelow(at, base);
      if (entry.block == nullptr) return nullptr;
      Block* const block = entry.block;
      if (block->pool == pool.get() && block->taken() && pool->address(*block).address() == entry.address) {
        return Bytes(address.address() - entry.address) < block->size ? block : nullptr;
      }
      if (entry.address == base) return nullptr;
      at = entry.address - SizeClass::kGranule.count();  // that block has become another since
    }
  }
  return nullptr;
}

absl::Status CachingAllocator::Impl::BadRequest(Bytes size, Stream stream) const {
  return absl::InvalidArgumentError(
      fmt::format("cannot allocate {} on a stream of device {}: this is the allocator of device {}, for up to 2^62 bytes",
                  ToString(size), stream.device().value(), device.value()));
}

void CachingAllocator::Impl::ReportMisuse(DevicePtr address, std::string_view call) {
  std::string what;
  ledger.ForEachShard([&](Ledger::Shard& shard, bool) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    const ThreadCaches* caches = CachesOf(shard);
    const ThreadCaches::Freed* freed = caches == nullptr ? nullptr : caches->FindFreed(address.address());
    if (freed == nullptr || !what.empty()) return;
    what = fmt::format("the block there was freed already; its owner was {} [{}]{}{}", OwnerName(freed->payer.owner),
                       RoleName(freed->payer.role), freed->site == kNoSite ? "" : ", allocated at ", SiteName(freed->site));
  });
  if (what.empty()) {
    MutexLock lock(growth);
    const Block* block = TakenBlockHolding(address);
    const auto holds = [address](const std::unique_ptr<Pool>& pool) {
      const Range range = pool->range();
      return address.device() == range.base.device() && address.address() >= range.base.address() && address - range.base < range.size;
    };
    const auto& pools = placement.pools();
    if (block != nullptr && block->front.state.load(std::memory_order_relaxed) != FrontState::kIdle) {
      what = fmt::format("it points {} into a block of {}", ToString(address - block->pool->address(*block)), ToString(block->size));
    } else if (std::any_of(pools.begin(), pools.end(), holds)) {
      what = "no block in use is there";
    } else {
      what = "this allocator never handed it out";
    }
  }
  const std::string message = fmt::format("{}({:#x}) on device {}: {}", call, address.address(), address.device().value(), what);
  if (on_misuse == OnMisuse::kAbort) Die(message + " (GPULEDGER_ON_MISUSE=warn goes on)");
  fmt::print(stderr, "gpuledger: warning: {}\n", message);
}

}  // namespace gpuledger
