#include "pending_blocks.h"

#include <algorithm>

#include <fmt/format.h>

namespace gpuledger {

PendingBlocks::~PendingBlocks() {
  MutexLock lock(mutex_);
  for (const auto& [stream, queue] : queues_) {
    for (const Waiting& waiting : queue) upstream_.DropFence(waiting.fence);
  }
}

void PendingBlocks::NoteUse(Block* block, StreamKey stream) {
  MutexLock lock(mutex_);
  std::vector<StreamKey>& users = users_[block];
  if (std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
}

void PendingBlocks::Add(Block* block) {
  MutexLock lock(mutex_);
  const auto users = users_.find(block);
  for (const StreamKey& stream : users->second) unfenced_.push_back({stream, block});
  block->fences = static_cast<uint32_t>(users->second.size());
  users_.erase(users);
  blocks_ += 1;
  TryFences();
}

void PendingBlocks::TryFences() {
  std::erase_if(unfenced_, [this](const Unfenced& wanted) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    if (!wanted.stream.reachable()) return false;
    const absl::StatusOr<FenceId> fence = upstream_.RecordFence(wanted.stream.stream);
    if (!fence.ok()) return false;
    auto queue = std::find_if(queues_.begin(), queues_.end(), [&](const auto& q) { return q.first == wanted.stream; });
    if (queue == queues_.end()) queue = queues_.insert(queues_.end(), {wanted.stream, {}});
    queue->second.push_back({*fence, wanted.block});
    return true;
  });
}

void PendingBlocks::PassOne(Block* block, std::vector<Block*>& passed) {
  if (--block->fences > 0) return;
  passed.push_back(block);
  blocks_ -= 1;
}

void PendingBlocks::TakePassedOf(std::deque<Waiting>& queue, std::vector<Block*>& passed) {
  std::vector<FenceId> asked;
  for (size_t batch = 1; !queue.empty(); batch *= 2) {
    asked.clear();
    for (size_t i = 0; i < std::min(batch, queue.size()); ++i) asked.push_back(queue[i].fence);
    size_t taken = 0;
    for (const FenceId fence : upstream_.PassedFences(asked)) {
      if (fence != queue.front().fence) return;  // one before it could not be asked for: next time
      upstream_.DropFence(fence);
      PassOne(queue.front().block, passed);
      queue.pop_front();
      ++taken;
    }
    if (taken < asked.size()) return;
  }
}

std::vector<Block*> PendingBlocks::TakePassed() {
  std::vector<Block*> passed;
  MutexLock lock(mutex_);
  if (blocks_ == 0) return passed;
  TryFences();
  for (auto& [stream, queue] : queues_) TakePassedOf(queue, passed);
  std::erase_if(queues_, [](const auto& q) { return q.second.empty(); });
  return passed;
}

absl::Status PendingBlocks::Wait(std::vector<Block*>& passed) {
  MutexLock lock(mutex_);
  if (blocks_ == 0) return absl::OkStatus();
  TryFences();
  absl::Status first_failure;  // one bad stream keeps its own blocks pending, not those of others
  for (auto& [stream, queue] : queues_) {
    if (queue.empty()) continue;
    first_failure.Update(upstream_.WaitFence(queue.back().fence));
    TakePassedOf(queue, passed);
  }
  std::erase_if(queues_, [](const auto& q) { return q.second.empty(); });
  if (!unfenced_.empty()) {
    // No fence could be had on their streams: when the whole device is done, so are they.
    if (absl::Status status = upstream_.Synchronize(); !status.ok()) return status;
    for (const Unfenced& wanted : unfenced_) PassOne(wanted.block, passed);
    unfenced_.clear();
  }
  if (blocks_ == 0) return absl::OkStatus();
  if (!first_failure.ok()) return first_failure;
  return absl::InternalError(fmt::format("{} block(s) stay pending: their fences were waited for and have not passed", blocks_));
}

size_t PendingBlocks::size() const {
  MutexLock lock(mutex_);
  return blocks_;
}

}  // namespace gpuledger
