// Donors: which handles may move, the fences they leave behind, and giving memory back.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "placement.h"

namespace gpuledger {
namespace {

bool Holds(const std::vector<const StreamUse*>& uses, const Pool& pool) {
  return std::find(uses.begin(), uses.end(), &pool.use()) != uses.end();
}

}  // namespace

void Placement::LockOthers(const Pool& pool, bool lock) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  for (const std::unique_ptr<Pool>& other : pools_) {
    if (other.get() == &pool) continue;
    if (lock) {
      other->LockBesideAnother();
    } else {
      other->Unlock();
    }
  }
}

// Handles that hold nothing first, then those of the pool's own stream, then the longest free. Of handles free for equally
// long the highest goes: the low end of a range stays dense.
std::vector<FreeHandle> Placement::ListDonors(const Pool& pool, Extent keep, Bytes cap, const Tried& tried) const
    GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  std::vector<FreeHandle> donors;
  Bytes would_be = reserved();  // under a cap lowered since, not all that hold nothing may be used
  for (const Handle& orphan : orphans_) {
    would_be += orphan.size;
    if (would_be > cap) break;
    donors.push_back({nullptr, Bytes(), orphan, 0});
  }
  if (pool.use().kept()) return donors;
  for (const std::unique_ptr<Pool>& other : pools_) {
    const bool mine = other.get() == &pool;
    const bool asked = mine || ((tried.foreign || &other->use() == &pool.use()) && !other->use().kept() && other->use().orderly());
    if (!asked || Holds(tried.barred, *other)) continue;
    other->ListFreeHandles(mine ? keep : Extent{}, donors);
  }
  const auto rank = [&](const FreeHandle& h) { return h.pool == nullptr ? 0 : &h.pool->use() == &pool.use() ? 1 : 2; };
  std::sort(donors.begin(), donors.end(), [&](const FreeHandle& a, const FreeHandle& b) {
    if (rank(a) != rank(b)) return rank(a) < rank(b);
    if (a.pool == nullptr) return a.handle.id < b.handle.id;
    if (a.freed_at != b.freed_at) return a.freed_at < b.freed_at;
    if (a.pool != b.pool) return a.pool->number() < b.pool->number();
    return a.offset > b.offset;
  });
  return donors;
}

absl::StatusOr<bool> Placement::RecordDonorFences(Pool& pool, std::vector<Step>& steps, Tried& tried) {
  std::vector<std::pair<const StreamUse*, FenceId>> recorded;
  for (Step& step : steps) {
    if (!step.donor || step.donor->dead == nullptr) continue;
    const StreamUse& use = step.donor->from.pool->use();
    if (use.order == WorkOrder::kNone) continue;  // nothing to wait for
    const auto known = std::find_if(recorded.begin(), recorded.end(), [&](const auto& r) { return r.first == &use; });
    if (known != recorded.end()) {
      step.donor->fence = known->second;
      continue;
    }
    if (streams_may_vanish_ && &use != &pool.use()) {
      if (SynchronizeDevice().ok()) continue;
      tried.barred.push_back(&use);
      return false;
    }
    // Everything that used this memory was queued before it was freed, and so before this fence.
    const absl::StatusOr<FenceId> fence = upstream_.RecordFence(use.key.stream);
    bool ordered = fence.ok();
    if (ordered) {
      fences_.push_back(*fence);
      if (!aliasing_) {
        ordered = upstream_.WaitFence(*fence).ok();
      } else if (&use != &pool.use()) {
        ordered = upstream_.MakeStreamWait(pool.stream(), *fence).ok() || upstream_.WaitFence(*fence).ok();
      }
    }
    if (!ordered) {
      tried.barred.push_back(&use);
      return false;
    }
    recorded.emplace_back(&use, *fence);
    step.donor->fence = *fence;
  }
  return true;
}

void Placement::Undo(Pool& pool, std::vector<Step>& steps) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  for (Step& step : steps) {
    if (step.fresh) Release(*std::exchange(step.fresh, std::nullopt));
    if (!step.donor) continue;
    const Moving moving = *std::exchange(step.donor, std::nullopt);
    if (moving.dead == nullptr) {
      orphans_.push_back(moving.from.handle);
      orphaned_ += moving.from.handle.size;
      continue;
    }
    Pool& from = *moving.from.pool;
    if (&from != &pool) from.LockBesideAnother();
    from.Reattach(moving.dead, moving.from.handle);
    if (&from != &pool) from.Unlock();
  }
}

void Placement::BuryIn(Pool& from, const Pool& locked, Block* dead) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  if (&from != &locked) from.LockBesideAnother();
  from.Bury(dead);
  if (&from != &locked) from.Unlock();
}

// ---- dead addresses ----------------------------------------------------------------------------------------------------

void Placement::Collect() {
  if (dead_.empty() && fences_.empty()) return;
  std::vector<FenceId> passed = upstream_.PassedFences(fences_);
  std::sort(passed.begin(), passed.end());
  const auto has_passed = [&](FenceId fence) { return std::binary_search(passed.begin(), passed.end(), fence); };
  std::erase_if(dead_, [&](Dead& dead) {
    if (dead.fence && !has_passed(*dead.fence)) return false;
    dead.fence.reset();
    Pool& pool = *dead.block->pool;
    const absl::Status unmapped = upstream_.Unmap(pool.address(*dead.block), dead.handle.id);
    CountUpstreamCall();
    if (!unmapped.ok()) return false;
    MutexLock lock(pool.mutex);
    pool.Bury(dead.block);
    return true;
  });
  std::erase_if(fences_, [&](FenceId fence) {
    if (!has_passed(fence)) return false;
    upstream_.DropFence(fence);
    return true;
  });
}

void Placement::WaitForDead() {
  for (const FenceId fence : fences_) upstream_.WaitFence(fence).IgnoreError();
  Collect();
}

absl::Status Placement::SynchronizeDevice() {
  if (upstream_.Capturing(Stream::Default(upstream_.device()))) {
    return absl::FailedPreconditionError("a stream of the device is being captured into a graph");
  }
  return upstream_.Synchronize();
}

absl::Status Placement::WaitFor(const StreamUse& use, bool may_synchronise) {
  if (use.order == WorkOrder::kNone) return absl::OkStatus();
  if (streams_may_vanish_) return SynchronizeDevice();
  if (may_synchronise && use.order == WorkOrder::kStream && !use.key.reachable()) return SynchronizeDevice();
  if (!use.orderly()) {
    return absl::FailedPreconditionError("nobody here can record a fence on the stream of this pool");
  }
  return upstream_.WaitStream(use.key.stream);
}

// ---- giving memory back ------------------------------------------------------------------------------------------------

void Placement::Release(Handle handle) {
  CountUpstreamCall();
  if (upstream_.ReleaseHandle(handle.id).ok()) return;
  orphans_.push_back(handle);
  orphaned_ += handle.size;
}

void Placement::Trim(Bytes target, uint64_t freed_before, bool may_synchronise) {
  WaitForDead();  // a handle with a second address cannot be released
  orphaned_ = Bytes();
  for (const Handle orphan : std::exchange(orphans_, {})) Release(orphan);

  std::vector<const StreamUse*> barred;
  while (reserved() > target && TrimOnce(target, freed_before, false, barred)) {
  }
  while (may_synchronise && reserved() > target && TrimOnce(target, freed_before, true, barred)) {
  }
}

bool Placement::TrimOnce(Bytes target, uint64_t freed_before, bool may_synchronise, std::vector<const StreamUse*>& barred) {
  std::vector<FreeHandle> spare;
  for (const std::unique_ptr<Pool>& pool : pools_) {
    if (pool->kind() == PoolKind::kWhole || pool->use().kept() || Holds(barred, *pool)) continue;
    if (!pool->use().orderly() && !(may_synchronise && pool->use().order == WorkOrder::kStream)) continue;
    PoolLock lock(*pool);
    pool->ListFreeHandles({}, spare);
  }
  // A handle keeps a second address if its fence could not be waited for, or the unmapping failed: it cannot be released.
  std::erase_if(spare, [&](const FreeHandle& h) {
    return std::any_of(dead_.begin(), dead_.end(), [&](const Dead& dead) { return dead.handle.id == h.handle.id; });
  });
  if (freed_before != kAnyTime) std::erase_if(spare, [&](const FreeHandle& h) { return h.freed_at >= freed_before; });
  std::sort(spare.begin(), spare.end(), [](const FreeHandle& a, const FreeHandle& b) {
    if (a.freed_at != b.freed_at) return a.freed_at < b.freed_at;
    return a.pool != b.pool ? a.pool->number() < b.pool->number() : a.offset > b.offset;
  });

  // All out of reach first, then their streams waited for: whatever used them was queued before.
  std::vector<std::pair<Block*, Handle>> leaving;
  std::vector<const StreamUse*> uses;
  Bytes left = reserved();
  for (const FreeHandle& h : spare) {
    if (left <= target) break;
    MutexLock lock(h.pool->mutex);
    Block* dead = h.pool->Detach(h.offset, h.handle);
    if (dead == nullptr) continue;  // taken since
    leaving.emplace_back(dead, h.handle);
    left -= h.handle.size;
    if (!Holds(uses, *h.pool)) uses.push_back(&h.pool->use());
  }
  for (const StreamUse* use : uses) {
    if (!WaitFor(*use, may_synchronise).ok()) barred.push_back(use);
  }
  for (const auto& [dead, handle] : leaving) {
    Pool& pool = *dead->pool;
    bool unmapped = false;
    if (!Holds(barred, pool)) {
      CountUpstreamCall();
      unmapped = upstream_.Unmap(pool.address(*dead), handle.id).ok();
      if (!unmapped) barred.push_back(&pool.use());
    }
    if (unmapped) {
      Note(RecordKind::kUnmapped, pool, dead->offset, handle.size);
      Count(handle.size, false);
      Release(handle);
    }
    MutexLock lock(pool.mutex);
    unmapped ? pool.Bury(dead) : pool.Reattach(dead, handle);
  }
  return !leaving.empty();
}

void Placement::Unreserve() {
  WaitForDead();
  for (const FenceId fence : std::exchange(fences_, {})) upstream_.DropFence(fence);  // of a stream that cannot be waited for
  for (const std::unique_ptr<Pool>& pool : pools_) {
    // A range that came with its memory, and that could not be given back after its stream, is left to the upstream.
    if (pool->kind() != PoolKind::kWhole) upstream_.Unreserve(pool->range()).IgnoreError();
  }
}

absl::Status Placement::Check() const {
  Bytes mapped;
  size_t dead = 0;
  for (const std::unique_ptr<Pool>& pool : pools_) {
    MutexLock lock(pool->mutex);
    if (absl::Status s = pool->Check(); !s.ok()) return s;
    mapped += pool->mapped();
    for (const Block* b = pool->first(); b != nullptr; b = b->right) dead += b->space == Space::kDead;
  }
  if (mapped != reserved()) {
    return absl::InternalError(fmt::format("reserved {}, but the pools hold {}", ToString(reserved()), ToString(mapped)));
  }
  if (dead != dead_.size()) return absl::InternalError("dead blocks that wait for no fence");
  Bytes orphans;
  for (const Handle& handle : orphans_) orphans += handle.size;
  if (orphans != orphaned_) return absl::InternalError("handles that hold nothing were miscounted");
  if (peak_reserved() < reserved()) return absl::InternalError("the peak of reserved is below reserved");
  return absl::OkStatus();
}

}  // namespace gpuledger
