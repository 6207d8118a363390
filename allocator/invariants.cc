// The equations of DESIGN section 3, asserted in one place.
#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {

absl::Status CachingAllocator::CheckInvariants() const {
  MutexLock lock(impl_->mutex);
  return impl_->Check();
}

absl::Status CachingAllocator::Impl::Check() const {
  if (absl::Status s = ledger.CheckInvariants(); !s.ok()) return s;
  Bytes in_use, pending_bytes, cached;
  size_t pending_blocks = 0, live_blocks = 0;
  if (absl::Status s = placement.Check(); !s.ok()) return s;
  for (const std::unique_ptr<Pool>& pool : placement.pools()) {
    MutexLock lock(pool->mutex);
    for (const Block* b = pool->first(); b != nullptr; b = b->right) {
      if (b->cached()) cached += b->size;
      if (!b->taken()) continue;
      if (std::holds_alternative<Idle>(b->state)) return absl::InternalError("a taken block is neither in use nor pending");
      ++live_blocks;
      const auto* as_pending = std::get_if<Pending>(&b->state);
      const LiveAllocation charge = as_pending ? as_pending->charge.info() : std::get<InUse>(b->state).charge.info();
      (as_pending ? pending_bytes : in_use) += b->size;
      pending_blocks += as_pending != nullptr;
      const auto found = index.find(pool->address(*b).address());
      if (found == index.end() || found->second != b) return absl::InternalError("a live block is not in the index");
      if (charge.charged != b->size || charge.address != pool->address(*b) || charge.pending != (as_pending != nullptr)) {
        return absl::InternalError(fmt::format("the block at {:#x} and its charge disagree", charge.address.address()));
      }
    }
  }
  // Sets, not only totals: as many entries as live blocks, each found from its block above.
  if (index.size() != live_blocks) return absl::InternalError("the index holds blocks that are not live");
  if (pending.size() != pending_blocks) return absl::InternalError("the list of pending blocks is not that of the pools");
  const Usage usage = ledger.usage();
  if (usage.count + usage.pending_count != live_blocks) return absl::InternalError("live charges and live blocks differ in number");
  if (usage.in_use != in_use || usage.pending != pending_bytes) {
    return absl::InternalError(fmt::format("in_use {} and pending {} of the ledger; the blocks sum to {} and {}", ToString(usage.in_use),
                                           ToString(usage.pending), ToString(in_use), ToString(pending_bytes)));
  }
  if (placement.reserved() != in_use + pending_bytes + cached) {
    return absl::InternalError(fmt::format("reserved {} is not in_use {} + pending {} + cached {}", ToString(placement.reserved()), ToString(in_use),
                                           ToString(pending_bytes), ToString(cached)));
  }
  return absl::OkStatus();
}

std::vector<SegmentInfo> CachingAllocator::segments() const {
  MutexLock lock(impl_->mutex);
  std::vector<SegmentInfo> segments;
  for (const std::unique_ptr<Pool>& pool : impl_->placement.pools()) {
    MutexLock pool_lock(pool->mutex);
    SegmentInfo segment{pool->range(), pool->stream(), {}};
    for (const Block* b = pool->first(); b != nullptr; b = b->right) {
      BlockInfo info{pool->address(*b), b->size, BlockState::kCached, {}};
      if (b->unmapped() && b->right == nullptr) break;  // the open end
      if (b->unmapped() || b->space == Space::kDead) info.state = BlockState::kUnmapped;
      if (const auto* in_use = std::get_if<InUse>(&b->state)) {
        info.state = BlockState::kInUse;
        info.charge.push_back(in_use->charge.info());
      } else if (const auto* waiting = std::get_if<Pending>(&b->state)) {
        info.state = BlockState::kPending;
        info.charge.push_back(waiting->charge.info());
      }
      segment.blocks.push_back(std::move(info));
    }
    segments.push_back(std::move(segment));
  }
  return segments;
}

}  // namespace gpuledger
