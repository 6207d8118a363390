// The cold half of CachingAllocator: what happens on a miss, rung by rung, and giving memory back.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"

namespace gpuledger {

absl::StatusOr<Pool*> CachingAllocator::Impl::PoolOf(Stream stream) {
  const auto found = pools.find(stream);
  if (found != pools.end()) return found->second.get();
  // As good as endless: free space is found again by windows, so addresses run out long after memory does.
  Bytes size = std::min((upstream.memory_info().total * 4u).RoundUpTo(granule), 64_TiB);
  absl::StatusOr<Range> range = upstream.Reserve(size);
  for (; !range.ok() && size > granule * 64u; range = upstream.Reserve(size)) size = (size / 2u).RoundUpTo(granule);
  if (!range.ok()) return range.status();
  Pool* pool = pools.emplace(stream, std::make_unique<Pool>(stream, *range, granule, store)).first->second.get();
  pool_order.push_back(pool);
  return pool;
}

[[gnu::noinline, gnu::cold]] absl::StatusOr<Block*> CachingAllocator::Impl::AllocateSlow(Pool& pool, SizeClass size_class,
                                                                                         Bytes requested, Payer payer) {
  // 1. Fences that have passed since.
  if (CompletePending() > 0) {
    if (Block* block = pool.Take(size_class)) return block;
  }
  // 2. New handles, up to the cap.
  absl::StatusOr<Block*> grown = Grow(pool, size_class.charged(), Donors::kNo);
  if (grown.ok() || !absl::IsResourceExhausted(grown.status())) return grown;
  // 3. Donors: cached handles of any pool, moved to where they are needed.
  grown = Grow(pool, size_class.charged(), Donors::kYes);
  if (grown.ok() || !absl::IsResourceExhausted(grown.status())) return grown;
  // 4. Pending work, waited for; then everything once more.
  if (!pending.empty() && WaitForPending().ok()) {
    if (Block* block = pool.Take(size_class)) return block;
    grown = Grow(pool, size_class.charged(), Donors::kYes);
    if (grown.ok() || !absl::IsResourceExhausted(grown.status())) return grown;
  }
  // 5. The report.
  Record record;
  record.kind = RecordKind::kOutOfMemory;
  record.requested = requested;
  record.charged = size_class.charged();
  record.stream = pool.stream().raw();
  record.owner = payer.owner;
  record.role = payer.role;
  ledger.Note(record);
  return absl::ResourceExhaustedError(OutOfMemoryReport(pool, requested, payer, std::string_view(grown.status().message().data(), grown.status().message().size())));
}

absl::StatusOr<Block*> CachingAllocator::Impl::Grow(Pool& pool, Bytes size, Donors donors) {
  const std::optional<Window> window = pool.FindWindow(size);
  if (!window) return absl::ResourceExhaustedError(fmt::format("the {} of addresses of this stream have no room for it", ToString(pool.range().size)));
  const std::vector<uint64_t> missing = pool.MissingGranules(window->offset, size);

  // Enough handles for the window, or none: what was made for nothing is given back.
  std::vector<HandleId> handles;
  const auto release_all = [&]() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    for (const HandleId handle : handles) Release(handle);
    handles.clear();
  };
  std::string why = fmt::format("the cap is {}", ToString(options.cap));
  while (handles.size() < missing.size() && reserved() + granule * (handles.size() + 1) <= options.cap) {
    const absl::StatusOr<HandleId> handle = upstream.CreateHandle(granule);
    ++upstream_calls;
    if (!handle.ok()) {
      if (!absl::IsResourceExhausted(handle.status())) {
        release_all();
        return handle.status();
      }
      why = std::string(handle.status().message());
      break;
    }
    handles.push_back(*handle);
  }
  if (const uint64_t short_of = missing.size() - handles.size(); short_of > 0) {
    absl::StatusOr<std::vector<HandleId>> moved = std::vector<HandleId>();
    if (donors == Donors::kYes) moved = TakeDonors(pool, short_of, window->offset, window->offset + size);
    if (!moved.ok() || moved->size() < short_of) {
      release_all();
      return moved.ok() ? absl::ResourceExhaustedError(why) : moved.status();
    }
    handles.insert(handles.end(), moved->begin(), moved->end());
  }

  for (size_t i = 0; i < missing.size(); ++i) {
    const absl::Status mapped = upstream.Map(pool.granule_address(missing[i]), handles[i]);
    ++upstream_calls;
    if (!mapped.ok()) {
      handles.erase(handles.begin(), handles.begin() + static_cast<std::ptrdiff_t>(i));  // those are cached now, and stay
      release_all();
      return mapped;
    }
    pool.NoteMapped(missing[i], handles[i]);
    peak_reserved = std::max(peak_reserved, reserved());
    Record record;
    record.kind = RecordKind::kMapped;
    record.charged = granule;
    record.address = pool.granule_address(missing[i]).address();
    record.stream = pool.stream().raw();
    ledger.Note(record);
  }
  return pool.Carve(window->offset, size);
}

absl::StatusOr<std::vector<HandleId>> CachingAllocator::Impl::TakeDonors(Pool& pool, uint64_t count, Bytes keep, Bytes keep_end) {
  // First whether there are enough: with too few, nothing is moved.
  std::vector<std::pair<Pool*, uint64_t>> donors;
  for (const uint64_t g : pool.DonorGranules(keep, keep_end)) donors.emplace_back(&pool, g);
  for (Pool* other : pool_order) {
    if (other == &pool) continue;
    for (const uint64_t g : other->DonorGranules(Bytes(), Bytes())) donors.emplace_back(other, g);
  }
  if (donors.size() < count) return std::vector<HandleId>();
  donors.resize(count);

  std::vector<HandleId> handles;
  const Pool* waited_for = nullptr;
  for (const auto& [donor, g] : donors) {
    if (donor != waited_for) {
      if (absl::Status s = WaitForStream(donor->stream()); !s.ok()) {
        for (const HandleId taken : handles) Release(taken);
        return s;
      }
      waited_for = donor;
    }
    absl::StatusOr<HandleId> handle = UnmapGranule(*donor, g);
    if (!handle.ok()) {
      for (const HandleId taken : handles) Release(taken);
      return handle.status();
    }
    handles.push_back(*handle);
  }
  return handles;
}

absl::Status CachingAllocator::Impl::WaitForStream(Stream stream) {
  const absl::StatusOr<FenceId> fence = upstream.RecordFence(stream);
  if (!fence.ok()) return fence.status();
  const absl::Status waited = upstream.WaitFence(*fence);
  upstream.DropFence(*fence);
  return waited;
}

absl::StatusOr<HandleId> CachingAllocator::Impl::UnmapGranule(Pool& pool, uint64_t g) {
  const HandleId handle = *pool.handle(g);
  const absl::Status unmapped = upstream.Unmap(pool.granule_address(g), handle);
  ++upstream_calls;
  if (!unmapped.ok()) return unmapped;
  Record record;
  record.kind = RecordKind::kUnmapped;
  record.charged = granule;
  record.address = pool.granule_address(g).address();
  record.stream = pool.stream().raw();
  ledger.Note(record);
  return pool.NoteUnmapped(g);
}

void CachingAllocator::Impl::Release(HandleId handle) {
  // It is mapped nowhere, so one that the upstream will not take back is memory lost, but no block is wrong.
  upstream.ReleaseHandle(handle).IgnoreError();
  ++upstream_calls;
}

Bytes CachingAllocator::ReleaseCached() {
  Impl& a = *impl_;
  MutexLock lock(a.mutex);
  a.CompletePending();
  const Bytes before = a.reserved();
  for (Pool* pool : a.pool_order) {
    const std::vector<uint64_t> donors = pool->DonorGranules(Bytes(), Bytes());
    if (donors.empty() || !a.WaitForStream(pool->stream()).ok()) continue;
    for (const uint64_t g : donors) {
      const absl::StatusOr<HandleId> handle = a.UnmapGranule(*pool, g);
      if (!handle.ok()) break;
      a.Release(*handle);
    }
  }
  return before - a.reserved();
}

CachingAllocator::~CachingAllocator() {
  Settle().IgnoreError();
  for (const LiveAllocation& left : ledger().live()) {
    if (!left.pending) {
      Die(fmt::format("the allocator of device {} ends while a block of {} is in use, owner {} [{}]", ledger().device().value(),
                      ToString(left.charged), OwnerName(left.payer.owner), RoleName(left.payer.role)));
    }
  }
  ReleaseCached();
  MutexLock lock(impl_->mutex);
  for (Pool* pool : impl_->pool_order) impl_->upstream.Unreserve(pool->range()).IgnoreError();
}

}  // namespace gpuledger
