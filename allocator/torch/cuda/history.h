// allocator/torch/cuda/history.h - what torch.cuda.memory._record_memory_history asks for, of one device, and trace trackers.
//
// PyTorch's own history: entries in a ring, with stacks that its callers gather. (The project's recorder is apart from it
// and always complete.) Stacks are gathered before any lock is taken, since that takes the GIL.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <c10/core/CachingDeviceAllocator.h>

#include "gpuledger/record.h"

namespace gpuledger::pytorch {

using Context = std::shared_ptr<c10::GatheredContext>;
using c10::CachingDeviceAllocator::AllocatorTraceTracker;
using c10::CachingDeviceAllocator::CreateContextFn;
using c10::CachingDeviceAllocator::RecordContext;
using c10::CachingDeviceAllocator::TraceEntry;

// What a thread has told of itself: torch.compile's frame, and _set_memory_metadata. Entries have both.
struct ThreadLabels {
  std::vector<std::string> compiling;  // the innermost last
  std::string metadata;
  static ThreadLabels& OfThisThread();
};

// Guarded by whoever has it (Device), but for Gather and active.
class History {
 public:
  explicit History(c10::DeviceIndex device) : device_(device) {}

  void Configure(bool enabled, CreateContextFn gather, size_t most_entries, RecordContext when, bool clear,
                 const std::vector<std::string>& skip_actions);
  void Attach(AllocatorTraceTracker tracker);
  [[nodiscard]] bool enabled() const { return enabled_; }

  // Any thread, no lock: a stack, if history wants one for an event of this kind. Null otherwise.
  [[nodiscard]] Context Gather(RecordContext of) const {
    const CreateContextFn gather = gather_.load(std::memory_order_relaxed);
    return gather == nullptr || of > when_.load(std::memory_order_relaxed) ? nullptr : gather();
  }
  // Any thread, no lock: whether anybody wants entries, or blocks' stacks.
  [[nodiscard]] bool active() const { return active_.load(std::memory_order_relaxed); }

  // The record as an entry, with the stack of the call that led to it. `expandable`: segments grow and shrink.
  void Note(const Record& record, const Context& context, c10::MempoolId_t pool, bool expandable);
  void Note(TraceEntry::Action action, uint64_t address, size_t size, void* stream, c10::MempoolId_t pool, const Context& context);

  [[nodiscard]] std::vector<TraceEntry> entries() const { return {entries_.begin(), entries_.end()}; }
  // Of the block in use or pending, or of the memory, that begins there.
  [[nodiscard]] Context ContextOfBlock(uint64_t address) const { return Find(blocks_, address); }
  [[nodiscard]] Context ContextOfMemory(uint64_t address) const { return Find(memory_, address); }

 private:
  using Contexts = std::unordered_map<uint64_t, Context>;
  static Context Find(const Contexts& contexts, uint64_t address) {
    const auto found = contexts.find(address);
    return found == contexts.end() ? nullptr : found->second;
  }
  void NoteContexts(const Record& record, const Context& context);
  void UpdateActive();

  const c10::DeviceIndex device_;
  std::atomic<bool> active_ = false;
  std::atomic<CreateContextFn> gather_ = nullptr;
  std::atomic<RecordContext> when_ = RecordContext::NEVER;
  bool enabled_ = false;
  size_t most_entries_ = 1;
  std::vector<TraceEntry::Action> skipped_;
  std::vector<AllocatorTraceTracker> trackers_;
  std::deque<TraceEntry> entries_;
  Contexts blocks_, memory_;
};

}  // namespace gpuledger::pytorch
