// Where the core itself notes the addresses of blocks: charges, blocks, pools, what a thread freed lately, the upstream's books.
#include "allocator_impl.h"

namespace gpuledger {

void CachingAllocator::Impl::VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit, absl::FunctionRef<void(const Charge::Entry&)> live) const
    GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
  for (const auto& batch : ledger.entries) {
    visit(batch.get(), sizeof(*batch));
    for (const Charge::Entry& entry : *batch) {
      if (entry.state == Charge::Entry::State::kInUse) live(entry);
    }
  }
  for (const auto& pool : placement.pools()) pool->VisitNotes(visit);
  for (const Ledger::Shard* shard : ledger.shards.AllWhileLocked()) {
    if (const ThreadCaches* caches = static_cast<const ThreadCaches*>(shard->extension.get())) visit(caches, sizeof(*caches));
  }
  upstream.VisitNotes(visit);
}

}  // namespace gpuledger
