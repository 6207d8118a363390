// allocator/pending_blocks.h - blocks that other streams use, and blocks that are freed and wait for those streams.
//
// Use is noted while a block is in use (RecordStream). When it is freed, a fence is recorded on each of those streams, and
// the block is pending until all have passed. Fences of one stream pass in the order of their recording, so each stream
// has a queue, and only its front is asked for: what has not passed costs one question a stream, however much waits.
// A fence that cannot be recorded (its stream is being captured, or is the per-thread stream of another thread) is tried
// again at each look; the block stays pending until then.
//
// Thread-safe, under a mutex of its own, taken inside the growth mutex and outside of all others.
#pragma once

#include <atomic>
#include <deque>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "block.h"
#include "gpuledger/upstream.h"
#include "stream_use.h"
#include "sync.h"

namespace gpuledger {

class PendingBlocks {
 public:
  // `streams_may_vanish`: nothing is asked of a stream but by the call that names it; a fence that could not be recorded
  // then is not tried again.
  PendingBlocks(Upstream& upstream, bool streams_may_vanish) : upstream_(upstream), streams_may_vanish_(streams_may_vanish) {}
  ~PendingBlocks();
  PendingBlocks(const PendingBlocks&) = delete;
  PendingBlocks& operator=(const PendingBlocks&) = delete;

  // Notes that `stream` uses the block, which is in use; no fence is recorded before it is freed.
  void NoteUse(Block* block, StreamKey stream) GPULEDGER_EXCLUDES(mutex_);
  // Takes a freed block, charged as pending, with the streams that were noted. Never waits.
  void Add(Block* block) GPULEDGER_EXCLUDES(mutex_);
  // Takes out the blocks whose fences have passed. Never waits.
  [[nodiscard]] std::vector<Block*> TakePassed() GPULEDGER_EXCLUDES(mutex_);
  // Whether some wait for fences, or have passed: without, TakePassed finds nothing but what could not be fenced before. No lock.
  [[nodiscard]] bool any_fenced() const { return any_fenced_.load(std::memory_order_relaxed); }
  // TakePassed, but nothing if another thread has the lock: that one looks.
  [[nodiscard]] std::vector<Block*> TryTakePassed() GPULEDGER_EXCLUDES(mutex_);
  // Waits for all that is pending now; TakePassed has it then. Holds no lock meanwhile. Synchronises the device if a fence
  // could not be recorded. An error says what could not be waited for; those blocks stay.
  absl::Status Wait() GPULEDGER_EXCLUDES(mutex_);
  // All work of `stream` is done, and it is about to be destroyed.
  void Forget(StreamKey stream) GPULEDGER_EXCLUDES(mutex_);
  // Whether a stream that pending blocks wait for is being captured.
  [[nodiscard]] bool AnyCapturing() const GPULEDGER_EXCLUDES(mutex_);

  // All of them, whatever they wait for; their fences are dropped. For an end that cannot wait.
  [[nodiscard]] std::vector<Block*> TakeAll() GPULEDGER_EXCLUDES(mutex_);
  // In a forked child: of `pending`, which are freed and charged as pending, takes those that are not here. The parent's
  // other threads were about to add them, or had just taken them out.
  void TakeIn(const std::vector<Block*>& pending) GPULEDGER_EXCLUDES(mutex_);

  [[nodiscard]] size_t size() const GPULEDGER_EXCLUDES(mutex_);

  Mutex& mutex() GPULEDGER_RETURN_CAPABILITY(mutex_) { return mutex_; }

 private:
  struct Waiting {
    FenceId fence;
    Block* block;
  };
  struct Unfenced {
    StreamKey stream;
    Block* block;
    uint64_t number;  // in the order of their coming
  };

  [[nodiscard]] absl::flat_hash_set<Block*> All() const GPULEDGER_REQUIRES(mutex_);
  absl::Status WaitForUnfenced() GPULEDGER_EXCLUDES(mutex_);
  [[nodiscard]] bool Capturing(const StreamKey& stream) const {
    return upstream_.Capturing(streams_may_vanish_ ? Stream::Default(stream.stream.device()) : stream.stream);
  }
  [[nodiscard]] std::vector<Block*> TakePassedLocked() GPULEDGER_REQUIRES(mutex_);
  void NoteFenced() GPULEDGER_REQUIRES(mutex_) {
    any_fenced_.store(!queues_.empty() || !done_.empty(), std::memory_order_relaxed);
  }
  void TryFences() GPULEDGER_REQUIRES(mutex_);
  void TakePassedOf(std::deque<Waiting>& queue, std::vector<Block*>& passed) GPULEDGER_REQUIRES(mutex_);
  void PassOne(Block* block, std::vector<Block*>& passed) GPULEDGER_REQUIRES(mutex_);

  Upstream& upstream_;
  const bool streams_may_vanish_;
  mutable Mutex mutex_;
  absl::flat_hash_map<Block*, std::vector<StreamKey>> users_ GPULEDGER_GUARDED_BY(mutex_);  // of blocks in use
  std::vector<std::pair<StreamKey, std::deque<Waiting>>> queues_ GPULEDGER_GUARDED_BY(mutex_);
  std::vector<Unfenced> unfenced_ GPULEDGER_GUARDED_BY(mutex_);
  uint64_t next_wanted_ GPULEDGER_GUARDED_BY(mutex_) = 0;
  std::vector<Block*> done_ GPULEDGER_GUARDED_BY(mutex_);  // passed, not yet taken out
  size_t blocks_ GPULEDGER_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> any_fenced_ = false;
};

}  // namespace gpuledger
