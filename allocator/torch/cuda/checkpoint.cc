#include "checkpoint.h"

#include <algorithm>

#include <c10/util/Exception.h>

namespace gpuledger::pytorch {
namespace {

struct Checkpoint final : AllocatorState {
  MempoolId_t pool;
  std::vector<LiveAllocation> live;
};

PrivatePools::Choice Known(Device& device, MempoolId_t id) {
  const std::optional<PrivatePools::Choice> pool = device.pools().Find(id);
  TORCH_CHECK(pool.has_value(), "there is no memory pool (", id.first, ", ", id.second, ") on device ", static_cast<int>(device.index()));
  return *pool;
}

std::vector<LiveAllocation> LiveIn(const PrivatePools::Choice& pool) {
  std::vector<LiveAllocation> live;
  for (const SegmentInfo& segment : pool.allocator->segments()) {
    if (segment.pool != pool.pool) continue;
    for (const BlockInfo& block : segment.blocks) {
      if (block.state == BlockState::kInUse) live.push_back(block.charge.front());
    }
  }
  return live;
}

}  // namespace

std::shared_ptr<AllocatorState> CheckpointOf(Device& device, MempoolId_t pool) {
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->pool = pool;
  checkpoint->live = LiveIn(Known(device, pool));
  return checkpoint;
}

CheckpointDelta Restore(Device& device, AllocatorState& state, c10::DeleterFnPtr deleter) {
  auto* const checkpoint = dynamic_cast<Checkpoint*>(&state);
  TORCH_CHECK(checkpoint != nullptr, "setCheckpointPoolState: the state is another allocator's");
  const PrivatePools::Choice pool = Known(device, checkpoint->pool);
  const Call call(nullptr, checkpoint->pool);
  CheckpointDelta delta;
  for (const LiveAllocation& block : LiveIn(pool)) {
    delta.ptrs_freed.push_back(reinterpret_cast<void*>(block.address.address()));
    pool.allocator->Free(block.address);
  }
  for (const LiveAllocation& block : checkpoint->live) {
    const OwnerScope payer(block.payer);
    const absl::Status placed = pool.allocator->AllocateAt(block.address, block.requested, block.stream, block.site, pool.pool, block.charged);
    TORCH_CHECK(placed.ok(), "setCheckpointPoolState: ", std::string(placed.message()));
    void* const memory = reinterpret_cast<void*>(block.address.address());
    delta.dataptrs_allocd.emplace_back(memory, memory, deleter, c10::Device(c10::DeviceType::CUDA, device.index()));
  }
  return delta;
}

bool LiveAre(Device& device, MempoolId_t id, const std::unordered_set<void*>& expected) {
  const std::vector<LiveAllocation> live = LiveIn(Known(device, id));
  return live.size() == expected.size() && std::all_of(live.begin(), live.end(), [&](const LiveAllocation& block) {
           return expected.contains(reinterpret_cast<void*>(block.address.address()));
         });
}

}  // namespace gpuledger::pytorch
