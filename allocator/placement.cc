// Growth: from a miss to a mapped window.
#include "placement.h"

#include <algorithm>

#include <fmt/format.h>

namespace gpuledger {

Placement::Placement(Upstream& upstream, Ledger& ledger, AddressMap& blocks, bool streams_may_vanish)
    : upstream_(upstream),
      ledger_(ledger),
      blocks_(blocks),
      granularity_(upstream.granularity()),
      aliasing_(upstream.capabilities().aliasing),
      streams_may_vanish_(streams_may_vanish) {}

// ---- pools -------------------------------------------------------------------------------------------------------------

absl::StatusOr<Pool*> Placement::MakePool(const StreamUse& use, PoolKind kind) {
  // As good as endless: free space is found again by windows, so addresses run out long after memory does.
  const Bytes total = std::min(upstream_.memory_info().total, 8_TiB);
  Bytes size = (total * (kind == PoolKind::kSmall ? 2u : 4u)).RoundUpTo(granularity_);
  absl::StatusOr<Range> range = upstream_.Reserve(size);
  for (; !range.ok() && size > granularity_ * 64u; range = upstream_.Reserve(size)) size = (size / 2u).RoundUpTo(granularity_);
  if (!range.ok()) return range.status();
  return pools_.emplace_back(std::make_unique<Pool>(use, kind, *range, granularity_, next_number_++)).get();
}

Pool* Placement::AdoptWholeRange(const StreamUse& use, Range range) {
  blocks_.Prepare(range.base.address(), range.size);
  Pool* pool = nullptr;
  if (past_pools_.empty()) {
    pool = pools_.emplace_back(std::make_unique<Pool>(use, PoolKind::kWhole, range, granularity_, next_number_++)).get();
  } else {
    pool = pools_.emplace_back(std::move(past_pools_.back())).get();
    past_pools_.pop_back();
    MutexLock lock(pool->mutex);
    pool->BeginAgain(use, range);
  }
  Count(range.size, true);
  Note(RecordKind::kMapped, *pool, Bytes(), range.size);
  return pool;
}

void Placement::ForgetWholeRange(Pool* pool) {
  Count(pool->range().size, false);
  Note(RecordKind::kUnmapped, *pool, Bytes(), pool->range().size);
  const auto place = std::find_if(pools_.begin(), pools_.end(), [pool](const std::unique_ptr<Pool>& p) { return p.get() == pool; });
  past_pools_.push_back(std::move(*place));
  pools_.erase(place);
}

void Placement::Count(Bytes size, bool more) {
  const uint64_t now = more ? reserved_ + size.count() : reserved_ - size.count();
  reserved_ = now;
  if (now > peak_reserved_) peak_reserved_ = now;
}

void Placement::Note(RecordKind kind, const Pool& pool, Bytes offset, Bytes size) {
  Record record;
  record.kind = kind;
  record.charged = size;
  record.address = (pool.range().base + offset).address();
  record.stream = pool.stream().raw();
  ledger_.Note(record);
}

// ---- growth ------------------------------------------------------------------------------------------------------------

absl::StatusOr<Block*> Placement::Grow(Pool& pool, SizeClass size_class, Bytes live, Bytes peak, Bytes cap) {
  // What is wanted counts as live for this request alone, unless it is had: one that is refused leaves the gate where it was.
  const Bytes before = std::max(peak_live_, peak);
  peak_live_ = std::max(before, live + size_class.charged());
  absl::StatusOr<Block*> block = GrowToPeak(pool, size_class, cap);
  if (!block.ok()) peak_live_ = before;
  return block;
}

absl::StatusOr<Block*> Placement::GrowToPeak(Pool& pool, SizeClass size_class, Bytes cap) {
  WatchMoves();
  absl::StatusOr<Block*> block = GrowOnce(pool, size_class, cap, !streams_may_vanish_);
  const auto exhausted = [&] { return !block.ok() && absl::IsResourceExhausted(block.status()); };
  if (streams_may_vanish_ && exhausted()) block = GrowOnce(pool, size_class, cap, true);
  if (!exhausted() || !pool.use().kept() || shortage_ == Shortage::kAddresses) return block;
  // No handle may move here, but memory may be given back and bought again.
  const Bytes wanted = size_class.charged().RoundUpTo(granularity_) + granularity_;
  Trim(reserved() - std::min(reserved(), wanted));
  return GrowOnce(pool, size_class, cap, true);
}

void Placement::WatchMoves() {
  constexpr uint64_t kWhile = 100'000'000;
  const uint64_t begin = upstream_.now().value();
  Collect();  // the end of earlier moves
  const uint64_t now = upstream_.now().value();
  moving_ += now - begin;
  if (looked_at_ == 0) looked_at_ = begin;
  const uint64_t elapsed = now - looked_at_;
  if (elapsed < kWhile) return;
  if (moving_ > elapsed / 2) {
    slack_permille_ = std::min(slack_permille_ * 4, kMostSlackPermille);
  } else if (moving_ < elapsed / 64) {
    slack_permille_ = std::max(slack_permille_ - slack_permille_ / 8, kSlackPermille);
  }
  looked_at_ = now;
  moving_ = 0;
}

absl::StatusOr<Block*> Placement::GrowOnce(Pool& pool, SizeClass size_class, Bytes cap, bool foreign) {
  PoolLock lock(pool);
  Tried tried{.barred = {}, .foreign = foreign};
  while (true) {
    // Others may have freed or grown since the miss, and a round before this one too.
    if (Block* block = pool.Take(size_class)) return block;
    std::vector<Step> steps = TakePlan(pool, size_class.charged(), cap, tried);
    if (steps.empty()) return absl::ResourceExhaustedError(why_);
    absl::StatusOr<bool> done = RecordDonorFences(pool, steps, tried);
    if (done.ok() && *done) done = CreateHandles(steps, tried);
    if (done.ok() && *done) done = MapAll(pool, steps, tried);
    Undo(pool, steps);
    if (!done.ok()) return done.status();
  }
}

std::vector<Placement::Step> Placement::TakePlan(Pool& pool, Bytes size, Bytes cap, const Tried& tried)
    GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  const std::optional<Window> best = pool.FindWindow(size);
  if (!best) {
    shortage_ = Shortage::kAddresses;
    why_ = fmt::format("the {} of addresses of this stream have no room for it", ToString(pool.range().size));
    return {};
  }
  const Bytes held = reserved() + orphaned_;
  const Bytes under_cap = (held < cap ? cap - held : Bytes()).RoundDownTo(granularity_);
  const Bytes available = std::min(upstream_.memory_info().free, tried.upstream_limit).RoundDownTo(granularity_);
  const Bytes limit = std::min(under_cap, available);
  const Bytes gate_at = (peak_live_ + peak_live_ / 1000u * slack_permille_).RoundUpTo(granularity_);
  const Bytes gate = std::min(limit, held < gate_at ? gate_at - held : Bytes());

  LockOthers(pool, true);
  std::vector<FreeHandle> donors;
  const auto fill = [&](const Window& window, Bytes at_most) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS -> std::optional<Plan> {
    donors.clear();
    if (window.missing > gate) donors = ListDonors(pool, {window.offset, size}, cap, tried);
    return FillGaps(pool.Gaps(window.offset, size), donors, {gate, at_most},
                    {granularity_, LargestHandle(pool.kind(), granularity_, peak_live_, window.missing)});
  };
  // Within the gate if donors can do it, at the best place or, where every donor fits, at the open end; beyond the gate
  // only then.
  const std::optional<Window> open = pool.OpenEnd(size);
  std::optional<Plan> plan = fill(*best, gate);
  if (!plan && open) plan = fill(*open, gate);
  if (!plan && limit > gate) plan = fill(*best, limit);
  if (!plan && limit > gate && open) plan = fill(*open, limit);
  std::vector<Step> steps;
  if (plan) {
    for (const Piece& piece : plan->pieces) {
      Step& step = steps.emplace_back(Step{piece, {}, {}});
      if (piece.donor == Piece::kNew) continue;
      const FreeHandle& donor = donors[piece.donor];
      if (donor.pool == nullptr) {
        std::erase_if(orphans_, [&](const Handle& h) { return h.id == donor.handle.id; });
        orphaned_ -= donor.handle.size;
        step.donor = Moving{donor, nullptr, {}};
      } else {
        step.donor = Moving{donor, donor.pool->Detach(donor.offset, donor.handle), {}};
      }
    }
  } else {
    shortage_ = under_cap <= available ? Shortage::kCap : Shortage::kUpstream;
    why_ = shortage_ == Shortage::kCap ? fmt::format("the cap is {}", ToString(cap))
                                       : fmt::format("the upstream has {} left", ToString(available));
  }
  LockOthers(pool, false);
  return steps;
}

absl::StatusOr<bool> Placement::CreateHandles(std::vector<Step>& steps, Tried& tried) {
  Bytes made;
  for (Step& step : steps) {
    if (step.donor) continue;
    const absl::StatusOr<HandleId> handle = upstream_.CreateHandle(step.piece.size);
    CountUpstreamCall();
    if (!handle.ok()) {
      if (!absl::IsResourceExhausted(handle.status())) return handle.status();
      tried.upstream_limit = made;
      return false;
    }
    step.fresh = Handle{*handle, step.piece.size};
    made += step.piece.size;
  }
  return true;
}

absl::StatusOr<bool> Placement::MapAll(Pool& pool, std::vector<Step>& steps, Tried& tried) {
  const uint64_t now = upstream_.now().value();
  for (Step& step : steps) {
    const Bytes offset = step.piece.offset, size = step.piece.size;
    const bool moves = step.donor && step.donor->dead != nullptr;
    if (moves && !aliasing_) {  // its stream has been waited for
      Pool& from = *step.donor->from.pool;
      const absl::Status unmapped = upstream_.Unmap(from.address(*step.donor->dead), step.donor->from.handle.id);
      CountUpstreamCall();
      if (!unmapped.ok()) {
        tried.barred.push_back(&from.use());
        return false;
      }
      Note(RecordKind::kUnmapped, from, step.donor->dead->offset, size);
      Count(size, false);
      BuryIn(from, pool, step.donor->dead);
      step.fresh = step.donor->from.handle;  // holds nothing until it is mapped
      step.donor.reset();
    }
    const Handle handle = step.donor ? step.donor->from.handle : *step.fresh;
    const uint64_t begin = step.donor ? upstream_.now().value() : 0;
    const absl::Status mapped = upstream_.Map(pool.range().base + offset, handle.id);
    if (step.donor) moving_ += upstream_.now().value() - begin;
    CountUpstreamCall();
    if (!mapped.ok()) return mapped;
    if (step.donor && step.donor->dead != nullptr) {
      dead_.push_back({step.donor->dead, handle, step.donor->fence});
      Note(RecordKind::kUnmapped, *step.donor->from.pool, step.donor->dead->offset, size);
    } else {
      Count(size, true);
    }
    step.donor.reset();
    step.fresh.reset();
    blocks_.Prepare((pool.range().base + offset).address(), size);
    pool.NoteMapped(offset, handle, now);
    Note(RecordKind::kMapped, pool, offset, size);
  }
  return true;
}

}  // namespace gpuledger
