#include "gpuledger/allocator.h"

#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"
#include "fork_guard.h"
#include "text.h"

namespace gpuledger {

CachingAllocator::CachingAllocator(Upstream& upstream, AllocatorOptions options, RecordSink* sink)
    : impl_(std::make_unique<Impl>(upstream, options, sink)) {
  RegisterForFork(this);
}

// ---- the hot path ----------------------------------------------------------------------------------------------------

absl::StatusOr<DevicePtr> CachingAllocator::AllocateRaw(Bytes size, Stream stream, SiteId site) noexcept {
  Impl& a = *impl_;
  if (size.is_zero()) return DevicePtr::Null(stream.device());
  if (size > Bytes(uint64_t{1} << 62) || stream.device() != a.upstream.device()) {
    return absl::InvalidArgumentError(fmt::format("cannot allocate {} on a stream of device {}: this is the allocator of device {}, for up to 2^62 bytes",
                                                  ToString(size), stream.device().value(), a.upstream.device().value()));
  }
  const SizeClass size_class = SizeClass::For(size);
  const Payer payer = CurrentPayer();

  MutexLock lock(a.mutex);
  absl::StatusOr<Pool*> pool = a.PoolOf(stream);
  if (!pool.ok()) return pool.status();
  Block* block = (*pool)->Take(size_class);
  if (block == nullptr) [[unlikely]] {
    absl::StatusOr<Block*> slow = a.AllocateSlow(**pool, size_class, size, payer);
    if (!slow.ok()) return slow.status();
    block = *slow;
  }
  const DevicePtr address = block->pool->address(*block);
  block->state.emplace<InUse>(a.ledger.Debit({payer, size, size_class.charged(), stream, address, site}));
  a.index.emplace(address.address(), block);
  return address;
}

void CachingAllocator::Free(DevicePtr address) noexcept {
  if (address.is_null()) return;
  Impl& a = *impl_;
  MutexLock lock(a.mutex);
  Block* block = a.FindInUse(address);
  if (block == nullptr) return a.ReportMisuse(address, "Free");
  auto& in_use = std::get<InUse>(block->state);
  const LiveAllocation info = in_use.charge.info();
  a.freed[a.next_freed++ % a.freed.size()] = {address.address(), info.payer, info.site};
  if (in_use.other_streams.empty()) {
    a.Complete(block);
    return;
  }
  in_use.charge.MakePending();
  Pending pending(std::move(in_use.charge), std::move(in_use.other_streams));
  a.RecordFences(block->state.emplace<Pending>(std::move(pending)));
  a.pending.push_back(block);
}

absl::StatusOr<Buffer> CachingAllocator::Allocate(Bytes size, Stream stream, SiteId site) noexcept {
  absl::StatusOr<DevicePtr> block = AllocateRaw(size, stream, site);
  if (!block.ok()) return block.status();
  return block->is_null() ? Buffer() : Buffer(this, *block, size);
}

// ---- buffers -----------------------------------------------------------------------------------------------------------

Buffer::Buffer(Buffer&& other) noexcept : allocator_(other.allocator_), ptr_(other.ptr_), size_(other.size_) {
  other.allocator_ = nullptr;
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Reset();
    allocator_ = std::exchange(other.allocator_, nullptr);
    ptr_ = other.ptr_;
    size_ = other.size_;
  }
  return *this;
}

void Buffer::Reset() {
  if (allocator_ != nullptr) std::exchange(allocator_, nullptr)->Free(ptr_);
}

// ---- blocks in use -------------------------------------------------------------------------------------------------------

absl::Status CachingAllocator::RecordStream(DevicePtr address, Stream stream) {
  Impl& a = *impl_;
  if (stream.device() != a.upstream.device()) {
    return absl::InvalidArgumentError(fmt::format("RecordStream: the stream is of device {}, the block of device {}",
                                                  stream.device().value(), a.upstream.device().value()));
  }
  MutexLock lock(a.mutex);
  Block* block = a.FindInUse(address);
  if (block == nullptr) return absl::NotFoundError(fmt::format("RecordStream: no block in use starts at {:#x}", address.address()));
  std::vector<Stream>& others = std::get<InUse>(block->state).other_streams;
  const bool known = stream == block->pool->stream() || std::find(others.begin(), others.end(), stream) != others.end();
  if (!known) others.push_back(stream);
  return absl::OkStatus();
}

absl::Status CachingAllocator::Transfer(DevicePtr address, Payer to) {
  Impl& a = *impl_;
  MutexLock lock(a.mutex);
  Block* block = a.FindInUse(address);
  if (block == nullptr) return absl::NotFoundError(fmt::format("Transfer: no block in use starts at {:#x}", address.address()));
  a.ledger.Transfer(std::get<InUse>(block->state).charge, to);
  return absl::OkStatus();
}

absl::StatusOr<LiveAllocation> CachingAllocator::Find(DevicePtr address) const {
  MutexLock lock(impl_->mutex);
  const auto starts_there = impl_->index.find(address.address());
  const Block* block = starts_there != impl_->index.end() ? starts_there->second : impl_->BlockHolding(address);
  if (block != nullptr) {
    if (const auto* in_use = std::get_if<InUse>(&block->state)) return in_use->charge.info();
    if (const auto* pending = std::get_if<Pending>(&block->state)) return pending->charge.info();
  }
  return absl::NotFoundError(fmt::format("no block in use or pending holds {:#x}", address.address()));
}

const Block* CachingAllocator::Impl::BlockHolding(DevicePtr address) const {
  for (const Pool* pool : pool_order) {
    const Range range = pool->range();
    if (address.address() < range.base.address() || address.address() - range.base.address() >= range.size.count()) continue;
    const Bytes offset = address - range.base;
    for (const Block* b = pool->first(); b != nullptr; b = b->right) {
      if (offset < b->end()) return b;
    }
  }
  return nullptr;
}

Block* CachingAllocator::Impl::FindInUse(DevicePtr address) const {
  const auto found = index.find(address.address());
  return found != index.end() && std::holds_alternative<InUse>(found->second->state) ? found->second : nullptr;
}

void CachingAllocator::Impl::ReportMisuse(DevicePtr address, std::string_view call) const {
  const Block* block = BlockHolding(address);
  std::string what;
  for (size_t back = 1; back <= freed.size() && back <= next_freed && what.empty(); ++back) {
    const Freed& f = freed[(next_freed - back) % freed.size()];
    if (f.address != address.address()) continue;
    what = fmt::format("the block there was freed already; its owner was {} [{}]{}{}", OwnerName(f.payer.owner), RoleName(f.payer.role),
                       f.site == kNoSite ? "" : ", allocated at ", SiteName(f.site));
  }
  if (what.empty() && block == nullptr) what = "this allocator never handed it out";
  if (what.empty() && block->free_space()) what = "no block in use is there";
  if (what.empty()) {
    what = fmt::format("it points {} into a block of {}", ToString(address - block->pool->address(*block)), ToString(block->size));
  }
  const std::string message = fmt::format("{}({:#x}) on device {}: {}", call, address.address(), address.device().value(), what);
  if (options.on_misuse == OnMisuse::kAbort) Die(message + " (GPULEDGER_ON_MISUSE=warn goes on)");
  fmt::print(stderr, "gpuledger: warning: {}\n", message);
}

// ---- pending blocks ------------------------------------------------------------------------------------------------------

void CachingAllocator::Impl::Complete(Block* block) {
  index.erase(block->pool->address(*block).address());
  block->pool->Put(block);  // the charge dies with the state: recorded before the block can be taken again
}

void CachingAllocator::Impl::RecordFences(Pending& block) {
  std::erase_if(block.unfenced, [&](Stream stream) {
    const absl::StatusOr<FenceId> fence = upstream.RecordFence(stream);
    if (fence.ok()) block.fences.push_back(*fence);
    return fence.ok();  // a stream without its fence keeps the block pending: tried again next time
  });
}

uint64_t CachingAllocator::Impl::CompletePending() {
  if (pending.empty()) return 0;
  std::vector<FenceId> fences;
  for (Block* block : pending) {
    auto& p = std::get<Pending>(block->state);
    RecordFences(p);
    fences.insert(fences.end(), p.fences.begin(), p.fences.end());
  }
  const std::vector<FenceId> passed = upstream.PassedFences(fences);
  auto next = passed.begin();  // in the order of `fences`, which is that of the walk below
  uint64_t completed = 0;
  std::erase_if(pending, [&](Block* block) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    auto& p = std::get<Pending>(block->state);
    std::erase_if(p.fences, [&](FenceId fence) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
      if (next == passed.end() || *next != fence) return false;
      upstream.DropFence(fence);
      ++next;
      return true;
    });
    if (!p.unfenced.empty() || !p.fences.empty()) return false;
    Complete(block);
    ++completed;
    return true;
  });
  return completed;
}

absl::Status CachingAllocator::Impl::WaitForPending() {
  CompletePending();
  absl::Status first_failure;  // one bad stream keeps its own blocks pending, not those of others
  for (Block* block : pending) {
    for (const FenceId fence : std::get<Pending>(block->state).fences) first_failure.Update(upstream.WaitFence(fence));
  }
  CompletePending();
  if (pending.empty()) return absl::OkStatus();
  if (!first_failure.ok()) return first_failure;
  return absl::InternalError(fmt::format("{} block(s) stay pending: no fence could be recorded on a stream that uses them", pending.size()));
}

uint64_t CachingAllocator::CompletePending() {
  MutexLock lock(impl_->mutex);
  return impl_->CompletePending();
}

absl::Status CachingAllocator::Settle() {
  MutexLock lock(impl_->mutex);
  return impl_->WaitForPending();
}

// ---- what it says of itself ------------------------------------------------------------------------------------------------

Bytes CachingAllocator::Impl::reserved() const {
  Bytes sum;
  for (const Pool* pool : pool_order) sum += granule * pool->mapped_granules();
  return sum;
}

Totals CachingAllocator::Impl::totals() const {
  Totals t;
  ledger.Flush();  // the equation holds for what all threads did, not for what this one knows of
  const Usage usage = ledger.usage();
  t.reserved = reserved();
  t.in_use = usage.in_use;
  t.pending = usage.pending;
  t.cached = t.reserved - t.in_use - t.pending;
  t.cap = options.cap;
  t.peak_reserved = peak_reserved;
  t.upstream_calls = upstream_calls;
  return t;
}

Totals CachingAllocator::totals() const {
  MutexLock lock(impl_->mutex);
  return impl_->totals();
}

void CachingAllocator::set_cap(Bytes cap) {
  MutexLock lock(impl_->mutex);
  impl_->options.cap = cap;
  impl_->Trim(cap);
}

Upstream& CachingAllocator::upstream() const { return impl_->upstream; }
Ledger& CachingAllocator::ledger() { return impl_->ledger; }
const Ledger& CachingAllocator::ledger() const { return impl_->ledger; }

void CachingAllocator::LockForFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  impl_->mutex.Lock();
  impl_->ledger.LockForFork();
}

void CachingAllocator::UnlockAfterFork() GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  impl_->ledger.UnlockAfterFork();
  impl_->mutex.Unlock();
}

void CachingAllocator::ForgetOtherThreads() { impl_->ledger.ForgetOtherThreads(); }

}  // namespace gpuledger
