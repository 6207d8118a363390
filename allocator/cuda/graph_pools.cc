#include "graph_pools.h"

#include <algorithm>

#include <fmt/format.h>

namespace gpuledger::cuda {
namespace {

std::string Name(GraphPools::Id id) { return fmt::format("private pool ({}, {})", id.first, id.second); }

}  // namespace

absl::Status GraphPools::Begin(Id id, Uses uses) {
  MutexLock lock(mutex_);
  const auto same = [id](const Filling& filling) { return filling.id == id; };
  if (std::any_of(filling_.begin(), filling_.end(), same)) {
    return absl::FailedPreconditionError(fmt::format("{} is being filled already: end that first", Name(id)));
  }
  auto found = pools_.find(id);
  if (found == pools_.end()) found = pools_.emplace(id, Pool{allocator_.CreatePool(), 0}).first;
  ++found->second.uses;
  filling_.push_back({id, found->second.pool, std::move(uses)});
  filling_count_.store(filling_.size(), std::memory_order_release);
  return absl::OkStatus();
}

absl::Status GraphPools::End(Id id) {
  MutexLock lock(mutex_);
  const auto same = [id](const Filling& filling) { return filling.id == id; };
  const auto found = std::find_if(filling_.begin(), filling_.end(), same);
  if (found == filling_.end()) return absl::NotFoundError(fmt::format("{} is not being filled", Name(id)));
  filling_.erase(found);
  filling_count_.store(filling_.size(), std::memory_order_release);
  return absl::OkStatus();
}

absl::Status GraphPools::Release(Id id) {
  PoolId pool = kSharedPool;
  {
    MutexLock lock(mutex_);
    const auto found = pools_.find(id);
    if (found == pools_.end()) return absl::NotFoundError(fmt::format("there is no {}", Name(id)));
    if (--found->second.uses != 0) return absl::OkStatus();
    pool = found->second.pool;
    pools_.erase(found);
  }
  return allocator_.ReleasePool(pool);  // waits for the device: with no lock held
}

PoolId GraphPools::Ask(CUstream_st* stream) {
  MutexLock lock(mutex_);
  for (const Filling& filling : filling_) {
    if (filling.uses(stream)) return filling.pool;
  }
  return kSharedPool;
}

}  // namespace gpuledger::cuda
