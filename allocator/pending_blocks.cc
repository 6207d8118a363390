#include "pending_blocks.h"

#include <algorithm>

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
  blocks_ += 1;
  block->front.fences = 1;  // until all its own are counted
  for (const StreamKey& stream : users->second) {
    unfenced_.push_back({stream, block, next_wanted_++});
    block->front.fences += 1;
  }
  users_.erase(users);
  TryFences();
  PassOne(block, done_);
  NoteFenced();
}

void PendingBlocks::TryFences() {
  std::vector<Unfenced> left;
  for (Unfenced& wanted : unfenced_) {
    if (wanted.stream.reachable()) {
      const absl::StatusOr<FenceId> fence = upstream_.RecordFence(wanted.stream.stream);
      if (fence.ok()) {
        auto queue = std::find_if(queues_.begin(), queues_.end(), [&](const auto& q) { return q.first == wanted.stream; });
        if (queue == queues_.end()) queue = queues_.insert(queues_.end(), {wanted.stream, {}});
        queue->second.push_back({*fence, wanted.block});
        continue;
      }
      if (streams_may_vanish_) wanted.stream = wanted.stream.OutOfReach();  // there may be no stream the next time
    }
    left.push_back(wanted);
  }
  unfenced_ = std::move(left);
}

void PendingBlocks::PassOne(Block* block, std::vector<Block*>& passed) {
  if (--block->front.fences > 0) return;
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
  MutexLock lock(mutex_);
  return TakePassedLocked();
}

std::vector<Block*> PendingBlocks::TryTakePassed() {
  if (!mutex_.TryLock()) return {};
  std::vector<Block*> passed = TakePassedLocked();
  mutex_.Unlock();
  return passed;
}

std::vector<Block*> PendingBlocks::TakePassedLocked() {
  std::vector<Block*> passed;
  passed.swap(done_);
  if (blocks_ > 0) {
    TryFences();
    for (auto& [stream, queue] : queues_) TakePassedOf(queue, passed);
    std::erase_if(queues_, [](const auto& q) { return q.second.empty(); });
  }
  NoteFenced();
  return passed;
}

absl::Status PendingBlocks::Wait() {
  std::vector<FenceId> last;  // of each stream: with it all before it have passed
  bool unfenced = false;
  {
    MutexLock lock(mutex_);
    TryFences();
    for (const auto& [stream, queue] : queues_) last.push_back(queue.back().fence);
    unfenced = !unfenced_.empty();
    NoteFenced();
  }
  // Nothing is held here: the work that is waited for may itself wait for a thread that frees a block. A fence that another
  // thread drops meanwhile has passed.
  absl::Status first_failure;
  for (const FenceId fence : last) {
    const absl::Status waited = upstream_.WaitFence(fence);
    if (!absl::IsFailedPrecondition(waited)) first_failure.Update(waited);  // one bad stream does not keep the others waiting
  }
  if (unfenced) first_failure.Update(WaitForUnfenced());
  return first_failure;
}

absl::Status PendingBlocks::WaitForUnfenced() {
  uint64_t before = 0;
  {
    MutexLock lock(mutex_);
    for (const Unfenced& wanted : unfenced_) {
      if (Capturing(wanted.stream)) {
        return absl::FailedPreconditionError("a stream that uses pending blocks is being captured into a graph");
      }
    }
    before = next_wanted_;
  }
  if (absl::Status status = upstream_.Synchronize(); !status.ok()) return status;
  MutexLock lock(mutex_);
  std::erase_if(unfenced_, [&](const Unfenced& wanted) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    if (wanted.number >= before) return false;
    PassOne(wanted.block, done_);
    return true;
  });
  NoteFenced();
  return absl::OkStatus();
}

void PendingBlocks::Forget(StreamKey stream) {
  MutexLock lock(mutex_);
  for (auto& [block, users] : users_) std::erase(users, stream);
  std::erase_if(unfenced_, [&](const Unfenced& wanted) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    if (wanted.stream != stream) return false;
    PassOne(wanted.block, done_);
    return true;
  });
  NoteFenced();
}

absl::flat_hash_set<Block*> PendingBlocks::All() const {
  absl::flat_hash_set<Block*> all(done_.begin(), done_.end());
  for (const auto& [stream, queue] : queues_) {
    for (const Waiting& waiting : queue) all.insert(waiting.block);
  }
  for (const Unfenced& wanted : unfenced_) all.insert(wanted.block);
  return all;
}

std::vector<Block*> PendingBlocks::TakeAll() {
  MutexLock lock(mutex_);
  const absl::flat_hash_set<Block*> all = All();
  for (const auto& [stream, queue] : queues_) {
    for (const Waiting& waiting : queue) upstream_.DropFence(waiting.fence);
  }
  queues_.clear();
  unfenced_.clear();
  done_.clear();
  blocks_ = 0;
  NoteFenced();
  return {all.begin(), all.end()};
}

void PendingBlocks::TakeIn(const std::vector<Block*>& pending) {
  std::vector<Block*> about_to_come;
  {
    MutexLock lock(mutex_);
    const absl::flat_hash_set<Block*> here = All();
    for (Block* block : pending) {
      if (here.contains(block)) continue;
      (users_.contains(block) ? about_to_come : done_).push_back(block);
    }
    NoteFenced();
  }
  for (Block* block : about_to_come) Add(block);
}

bool PendingBlocks::AnyCapturing() const {
  MutexLock lock(mutex_);
  const auto capturing = [this](const StreamKey& stream) { return Capturing(stream); };
  return std::any_of(unfenced_.begin(), unfenced_.end(), [&](const Unfenced& wanted) { return capturing(wanted.stream); }) ||
         std::any_of(queues_.begin(), queues_.end(), [&](const auto& queue) { return capturing(queue.first); });
}

size_t PendingBlocks::size() const {
  MutexLock lock(mutex_);
  return blocks_ + done_.size();
}

}  // namespace gpuledger
