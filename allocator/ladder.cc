// The cold half of CachingAllocator: what happens on a miss, rung by rung, and giving memory back.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"
#include "fork_guard.h"

namespace gpuledger {
namespace {

std::string_view Text(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

}  // namespace

absl::StatusOr<Pool*> CachingAllocator::Impl::PoolOf(Stream stream) {
  const auto found = pools.find(stream);
  if (found != pools.end()) return found->second.get();
  if (!mapping) {  // it holds no block: every request goes on to whole_ranges.cc
    auto empty = std::make_unique<Pool>(stream, Range{DevicePtr::Null(stream.device()), Bytes()}, granule, store);
    return pools.emplace(stream, std::move(empty)).first->second.get();
  }
  // As good as endless: free space is found again by windows, so addresses run out long after memory does.
  Bytes size = (std::min(upstream.memory_info().total, 16_TiB) * 4u).RoundUpTo(granule);
  absl::StatusOr<Range> range = upstream.Reserve(size);
  for (; !range.ok() && size > granule * 64u; range = upstream.Reserve(size)) size = (size / 2u).RoundUpTo(granule);
  if (!range.ok()) return range.status();
  Pool* pool = pools.emplace(stream, std::make_unique<Pool>(stream, *range, granule, store)).first->second.get();
  pool_order.push_back(pool);
  return pool;
}

[[gnu::noinline, gnu::cold]] absl::StatusOr<Block*> CachingAllocator::Impl::AllocateSlow(Pool& pool, SizeClass size_class,
                                                                                         Bytes requested, Payer payer) {
  if (!mapping) {
    absl::StatusOr<Block*> block = AllocateFromWholeRanges(pool.stream(), size_class);
    if (block.ok() || !absl::IsResourceExhausted(block.status())) return block;
    return OutOfMemory(pool, size_class, requested, payer, Text(block.status()));
  }
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
  if (!pending.empty()) {
    WaitForPending().IgnoreError();  // whatever it could wait for is cached now
    if (Block* block = pool.Take(size_class)) return block;
    grown = Grow(pool, size_class.charged(), Donors::kYes);
    if (grown.ok() || !absl::IsResourceExhausted(grown.status())) return grown;
  }
  // 5. The report.
  return OutOfMemory(pool, size_class, requested, payer, Text(grown.status()));
}

absl::Status CachingAllocator::Impl::OutOfMemory(const Pool& pool, SizeClass size_class, Bytes requested, Payer payer,
                                                 std::string_view why) {
  Record record;
  record.kind = RecordKind::kOutOfMemory;
  record.requested = requested;
  record.charged = size_class.charged();
  record.stream = pool.stream().raw();
  record.owner = payer.owner;
  record.role = payer.role;
  ledger.Note(record);
  return absl::ResourceExhaustedError(OutOfMemoryReport(pool, requested, payer, why));
}

absl::StatusOr<Block*> CachingAllocator::Impl::Grow(Pool& pool, Bytes size, Donors donors) {
  const std::optional<Window> window = pool.FindWindow(size);
  if (!window) {
    shortage = Shortage::kAddresses;
    return absl::ResourceExhaustedError(fmt::format("the {} of addresses of this stream have no room for it", ToString(pool.range().size)));
  }
  const std::vector<uint64_t> missing = pool.MissingGranules(window->offset, size);

  // Enough handles for the window or none, and none is made before it is clear that there will be enough.
  const auto below_cap = [&](Bytes held) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    return held < options.cap ? (options.cap - held) / granule : 0;
  };
  const uint64_t old = std::min(uint64_t{orphans.size()}, below_cap(reserved()));
  const uint64_t under_cap = below_cap(reserved() + granule * orphans.size());
  const uint64_t available = upstream.memory_info().free / granule;
  const uint64_t fresh = std::min(under_cap, available);
  shortage = under_cap <= available ? Shortage::kCap : Shortage::kUpstream;
  std::string why = shortage == Shortage::kCap ? fmt::format("the cap is {}", ToString(options.cap))
                                               : fmt::format("the upstream has {} left", ToString(upstream.memory_info().free));
  std::vector<Donor> movable;
  if (donors == Donors::kYes) movable = ListDonors(pool, window->offset, window->offset + size);
  if (old + fresh + movable.size() < missing.size()) return absl::ResourceExhaustedError(why);

  std::vector<HandleId> handles;
  const auto release_all = [&]() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    for (const HandleId handle : handles) Release(handle);
    handles.clear();
  };
  for (; handles.size() < std::min<uint64_t>(missing.size(), old); orphans.pop_back()) handles.push_back(orphans.back());
  for (uint64_t made = 0; handles.size() < missing.size() && made < fresh; ++made) {
    const absl::StatusOr<HandleId> handle = upstream.CreateHandle(granule);
    ++upstream_calls;
    if (!handle.ok()) {
      if (!absl::IsResourceExhausted(handle.status())) {
        release_all();
        return handle.status();
      }
      shortage = Shortage::kUpstream;
      why = std::string(handle.status().message());
      break;
    }
    handles.push_back(*handle);
  }
  if (const uint64_t short_of = missing.size() - handles.size(); short_of > 0) {
    const absl::StatusOr<std::vector<HandleId>> moved = TakeDonors(movable, short_of);
    if (!moved.ok()) {
      release_all();
      return absl::ResourceExhaustedError(why);
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

std::vector<CachingAllocator::Impl::Donor> CachingAllocator::Impl::ListDonors(const Pool& pool, Bytes keep, Bytes keep_end) const {
  std::vector<Donor> own, others;
  for (Pool* donor : pool_order) {
    const bool mine = donor == &pool;
    for (const uint64_t g : donor->DonorGranules(mine ? keep : Bytes(), mine ? keep_end : Bytes())) (mine ? own : others).emplace_back(donor, g);
  }
  own.insert(own.end(), others.begin(), others.end());
  return own;
}

absl::StatusOr<std::vector<HandleId>> CachingAllocator::Impl::TakeDonors(const std::vector<Donor>& donors, uint64_t count) {
  std::vector<HandleId> handles;
  const Pool* waited_for = nullptr;
  const Pool* bad = nullptr;
  for (const auto& [donor, g] : donors) {
    if (handles.size() == count) break;
    if (donor == bad) continue;
    if (donor != waited_for && !WaitForStream(donor->stream()).ok()) {
      bad = donor;
      continue;
    }
    waited_for = donor;
    if (const absl::StatusOr<HandleId> handle = UnmapGranule(*donor, g); handle.ok()) {
      handles.push_back(*handle);
    } else {
      bad = donor;
    }
  }
  if (handles.size() == count) return handles;
  for (const HandleId handle : handles) Release(handle);
  return absl::ResourceExhaustedError("too few cached handles could be moved");
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
  ++upstream_calls;
  if (!upstream.ReleaseHandle(handle).ok()) orphans.push_back(handle);
}

void CachingAllocator::Impl::Trim(Bytes target) {
  if (!mapping) {
    GiveBackRanges(target);
    return;
  }
  for (const HandleId handle : std::exchange(orphans, {})) Release(handle);
  for (Pool* pool : pool_order) {
    const std::vector<uint64_t> donors = pool->DonorGranules(Bytes(), Bytes());
    if (reserved() <= target || donors.empty() || !WaitForStream(pool->stream()).ok()) continue;
    for (const uint64_t g : donors) {
      if (reserved() <= target) return;
      const absl::StatusOr<HandleId> handle = UnmapGranule(*pool, g);
      if (!handle.ok()) break;
      Release(*handle);
    }
  }
}

Bytes CachingAllocator::ReleaseCached() {
  Impl& a = *impl_;
  MutexLock lock(a.mutex);
  a.CompletePending();
  const Bytes before = a.reserved() + a.granule * a.orphans.size();
  a.Trim(Bytes());
  return before - (a.reserved() + a.granule * a.orphans.size());
}

CachingAllocator::~CachingAllocator() {
  UnregisterForFork(this);
  Settle().IgnoreError();
  for (const LiveAllocation& left : ledger().live()) {
    if (!left.pending) {
      Die(fmt::format("the allocator of device {} ends while a block of {} is in use, owner {} [{}]", ledger().device().value(),
                      ToString(left.charged), OwnerName(left.payer.owner), RoleName(left.payer.role)));
    }
  }
  ReleaseCached();
  MutexLock lock(impl_->mutex);
  for (Pool* pool : impl_->pool_order) {
    // A range that came with its memory, and that could not be given back after its stream, is left to the upstream.
    if (impl_->mapping || pool->mapped_granules() == 0) impl_->upstream.Unreserve(pool->range()).IgnoreError();
  }
}

}  // namespace gpuledger
