#include "private_pools.h"

#include <algorithm>

#include <c10/util/Exception.h>

namespace gpuledger::pytorch {

PrivatePools::Pool* PrivatePools::PoolOf(MempoolId_t id) {
  // The latest of that name: an earlier one was released.
  const auto pool = std::find_if(pools_.rbegin(), pools_.rend(), [&](const Pool& p) { return p.id == id; });
  return pool == pools_.rend() ? nullptr : &*pool;
}

PrivatePools::Pool& PrivatePools::Known(MempoolId_t id, const char* call) {
  Pool* const pool = PoolOf(id);
  TORCH_CHECK(pool != nullptr && !pool->released(), call, ": there is no memory pool (", id.first, ", ", id.second, ") on device ",
              device_.upstream().device().value(), ": it was released, or never made");
  return *pool;
}

PrivatePools::Choice PrivatePools::ChoiceOf(const Pool& pool) const {
  if (pool.plugged != nullptr) return {&pool.plugged->core, pool.plugged->pool, pool.id, pool.no_split, pool.plugged};
  return {&device_, pool.pool, pool.id, pool.no_split};
}

PrivatePools::Choice PrivatePools::ChooseAmong(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  for (auto direction = directions_.rbegin(); direction != directions_.rend(); ++direction) {  // the innermost first
    if (direction->filter(stream)) return ChoiceOf(Known(direction->id, "allocate"));
  }
  return {&device_, kSharedPool, {0, 0}};
}

Bytes PrivatePools::SmallestFreeSegment(const CachingAllocator& plugged, Stream stream, Bytes room) {
  Bytes smallest = Bytes::Max();
  for (const SegmentInfo& segment : plugged.segments()) {
    const bool free = segment.blocks.size() == 1 && segment.blocks.front().state == BlockState::kCached;
    const Bytes size = segment.blocks.front().size;
    if (free && segment.stream == stream.Canonical() && size >= room) smallest = std::min(smallest, size);
  }
  return smallest == Bytes::Max() ? room : smallest;
}

std::vector<PrivatePools::Choice> PrivatePools::Reserves() const {
  const std::lock_guard lock(mutex_);
  std::vector<Choice> reserves;
  for (const Pool& pool : pools_) {
    if (pool.use_on_oom && !pool.released()) reserves.push_back(ChoiceOf(pool));
  }
  return reserves;
}

void PrivatePools::CreateOrIncrement(MempoolId_t id, std::shared_ptr<CUDAAllocator> plugged) {
  const std::lock_guard lock(mutex_);
  if (Pool* const pool = PoolOf(id); pool != nullptr && !pool->released()) {
    pool->users += 1;
    return;
  }
  Pool pool;
  pool.id = id;
  pool.users = 1;
  if (plugged != nullptr) {
    pool.plugged = std::make_shared<Plugged>(device_, std::move(plugged), sink_, budget_);
    plugged_.fetch_add(1, std::memory_order_relaxed);
  } else {
    pool.pool = device_.CreatePool();
  }
  pools_.push_back(std::move(pool));
}

void PrivatePools::Begin(MempoolId_t id, std::function<bool(cudaStream_t)> filter) {
  CreateOrIncrement(id, nullptr);
  const std::lock_guard lock(mutex_);
  const bool under_way = std::any_of(directions_.begin(), directions_.end(), [&](const Direction& d) { return d.id == id; });
  if (under_way) {
    PoolOf(id)->users -= 1;
    TORCH_CHECK(false, "beginAllocateToPool: the memory pool (", id.first, ", ", id.second, ") is being allocated to already");
  }
  directions_.push_back({id, std::move(filter)});
  directing_.store(directions_.size(), std::memory_order_relaxed);
}

void PrivatePools::End(MempoolId_t id) {
  const std::lock_guard lock(mutex_);
  const auto direction = std::find_if(directions_.begin(), directions_.end(), [&](const Direction& d) { return d.id == id; });
  TORCH_CHECK(direction != directions_.end(), "endAllocateToPool: nothing is being allocated to the memory pool (", id.first, ", ", id.second, ")");
  directions_.erase(direction);
  directing_.store(directions_.size(), std::memory_order_relaxed);
}

void PrivatePools::Release(MempoolId_t id) {
  std::shared_ptr<Plugged> released;
  {
    const std::lock_guard lock(mutex_);
    Pool& pool = Known(id, "releasePool");
    if (--pool.users > 0) return;
    released = pool.plugged;
    if (released == nullptr) {
      // Its memory is everybody's from here on, as its blocks become free.
      device_.ReleasePool(pool.pool).IgnoreError();
      std::erase_if(pools_, [&](const Pool& p) { return &p == &pool; });
    }
  }
  if (released != nullptr) released->core.ReleasePool(released->pool).IgnoreError();
}

int PrivatePools::UseCount(MempoolId_t id) const {
  const std::lock_guard lock(mutex_);
  const Pool* const pool = PoolOf(id);
  return pool == nullptr ? 0 : pool->users;
}

void PrivatePools::set_use_on_oom(MempoolId_t id, bool use) {
  const std::lock_guard lock(mutex_);
  Known(id, "setUseOnOOM").use_on_oom = use;
}

void PrivatePools::set_no_split(MempoolId_t id) {
  const std::lock_guard lock(mutex_);
  Known(id, "setNoSplit").no_split = true;
}

std::optional<PrivatePools::Choice> PrivatePools::Find(MempoolId_t id) const {
  const std::lock_guard lock(mutex_);
  const Pool* const pool = PoolOf(id);
  return pool == nullptr ? std::nullopt : std::optional(ChoiceOf(*pool));
}

MempoolId_t PrivatePools::IdOf(const CachingAllocator& allocator, PoolId id) const {
  const std::lock_guard lock(mutex_);
  for (const Pool& pool : pools_) {
    if (pool.plugged != nullptr ? &pool.plugged->core == &allocator : &allocator == &device_ && pool.pool == id) return pool.id;
  }
  return {0, 0};
}

std::vector<std::shared_ptr<CachingAllocator>> PrivatePools::Allocators() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<CachingAllocator>> all{ItsOwn()};
  for (const Pool& pool : pools_) {
    if (pool.plugged != nullptr) all.emplace_back(pool.plugged, &pool.plugged->core);
  }
  return all;
}

std::shared_ptr<CachingAllocator> PrivatePools::OwnerOf(DevicePtr block) const {
  if (device_.Owns(block)) [[likely]] return ItsOwn();
  if (plugged_.load(std::memory_order_relaxed) == 0) return nullptr;
  const std::lock_guard lock(mutex_);
  for (const Pool& pool : pools_) {
    if (pool.plugged != nullptr && pool.plugged->core.Owns(block)) return {pool.plugged, &pool.plugged->core};
  }
  return nullptr;
}

bool PrivatePools::TryFreePlugged(DevicePtr block) {
  std::shared_ptr<Plugged> owner;
  {
    const std::lock_guard lock(mutex_);
    for (const Pool& pool : pools_) {
      if (pool.plugged != nullptr && pool.plugged->core.Owns(block)) owner = pool.plugged;
    }
  }
  return owner != nullptr && owner->core.TryFree(block);
}

void PrivatePools::GiveBack(MempoolId_t id) {
  std::vector<std::shared_ptr<Plugged>> released;
  {
    const std::lock_guard lock(mutex_);
    for (const Pool& pool : pools_) {
      if (pool.plugged != nullptr && pool.released() && (id == MempoolId_t{0, 0} || id == pool.id)) released.push_back(pool.plugged);
    }
  }
  for (const std::shared_ptr<Plugged>& plugged : released) plugged->core.ReleaseCached();
  // Those that are gone end when `released` does, the lock no longer held.
  const std::lock_guard lock(mutex_);
  std::erase_if(pools_, [&](const Pool& pool) {
    if (pool.plugged == nullptr || !pool.released() || std::find(released.begin(), released.end(), pool.plugged) == released.end()) return false;
    const Totals totals = pool.plugged->core.totals();
    const bool empty = totals.reserved.is_zero() && totals.in_use.is_zero() && totals.pending.is_zero();
    if (empty) plugged_.fetch_sub(1, std::memory_order_relaxed);
    return empty;
  });
}

}  // namespace gpuledger::pytorch
