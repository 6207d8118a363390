#include "history.h"

#include <algorithm>
#include <optional>

#include <c10/util/ApproximateClock.h>
#include <c10/util/Exception.h>

namespace gpuledger::pytorch {
namespace {

std::optional<TraceEntry::Action> ActionOf(RecordKind kind, bool expandable) {
  switch (kind) {
    case RecordKind::kAllocate: return TraceEntry::ALLOC;
    case RecordKind::kFreeRequested: return TraceEntry::FREE_REQUESTED;
    case RecordKind::kFreeCompleted: return TraceEntry::FREE_COMPLETED;
    case RecordKind::kMapped: return expandable ? TraceEntry::SEGMENT_MAP : TraceEntry::SEGMENT_ALLOC;
    case RecordKind::kUnmapped: return expandable ? TraceEntry::SEGMENT_UNMAP : TraceEntry::SEGMENT_FREE;
    default: return {};
  }
}

}  // namespace

ThreadLabels& ThreadLabels::OfThisThread() {
  // A word of the static TLS block. Tensors of thread-locals may be freed after it is gone: then the thread says nothing of itself.
  static thread_local bool gone = false;
  struct Ending {
    std::unique_ptr<ThreadLabels> labels = std::make_unique<ThreadLabels>();
    ~Ending() { gone = true; }
  };
  static thread_local Ending of_this_thread;
  static ThreadLabels& nobody = *new ThreadLabels;
  return gone ? nobody : *of_this_thread.labels;
}

void History::Configure(bool enabled, CreateContextFn gather, size_t most_entries, RecordContext when, bool clear,
                        const std::vector<std::string>& skip_actions) {
  TORCH_CHECK(!enabled || when == RecordContext::NEVER || gather != nullptr,
              "recordHistory: to keep stacks it needs a function that gathers them");
  std::vector<TraceEntry::Action> skipped;
  for (const std::string& action : skip_actions) skipped.push_back(c10::CachingDeviceAllocator::parseTraceEntryAction(action));
  skipped_ = std::move(skipped);
  enabled_ = enabled;
  most_entries_ = std::max<size_t>(most_entries, 1);
  when_.store(enabled ? when : RecordContext::NEVER, std::memory_order_relaxed);
  gather_.store(enabled ? gather : nullptr, std::memory_order_relaxed);
  if (clear || !enabled) entries_.clear();
  while (entries_.size() > most_entries_) entries_.pop_front();
  UpdateActive();
}

void History::Attach(AllocatorTraceTracker tracker) {
  trackers_.push_back(std::move(tracker));
  UpdateActive();
}

void History::UpdateActive() {
  // Blocks whose stacks are kept are watched to their ends, also when nothing new is kept.
  active_.store(enabled_ || !trackers_.empty() || !blocks_.empty() || !memory_.empty(), std::memory_order_relaxed);
}

void History::Note(const Record& record, const Context& context, c10::MempoolId_t pool, bool expandable) {
  const std::optional<TraceEntry::Action> action = ActionOf(record.kind, expandable);
  if (!action.has_value()) return;
  const bool segment = record.kind == RecordKind::kMapped || record.kind == RecordKind::kUnmapped;
  const bool end = record.kind == RecordKind::kFreeRequested || record.kind == RecordKind::kFreeCompleted;
  // A free whose own stack is not taken has that of the block's allocation, as in PyTorch.
  const Context shown = end && context == nullptr ? ContextOfBlock(record.address) : context;
  NoteContexts(record, context);
  Note(*action, record.address, (segment ? record.charged : record.requested).count(), record.stream, pool, shown);
}

void History::NoteContexts(const Record& record, const Context& context) {
  switch (record.kind) {
    case RecordKind::kAllocate:
      if (context != nullptr) blocks_[record.address] = context;
      break;
    case RecordKind::kMapped:
      if (context != nullptr) memory_[record.address] = context;
      break;
    case RecordKind::kFreeCompleted:
      if (blocks_.erase(record.address) > 0 && !enabled_) UpdateActive();
      break;
    case RecordKind::kUnmapped:
      if (memory_.erase(record.address) > 0 && !enabled_) UpdateActive();
      break;
    default: break;
  }
}

void History::Note(TraceEntry::Action action, uint64_t address, size_t size, void* stream, c10::MempoolId_t pool, const Context& context) {
  if (!enabled_ && trackers_.empty()) return;
  const ThreadLabels& labels = ThreadLabels::OfThisThread();
  const bool keeps_stack = when_.load(std::memory_order_relaxed) >= RecordContext::ALLOC;
  TraceEntry entry(action, device_, address, size, stream, pool, c10::getApproximateTime(), keeps_stack ? context : nullptr,
                   labels.compiling.empty() ? "N/A" : labels.compiling.back(), labels.metadata);
  for (const AllocatorTraceTracker& tracker : trackers_) tracker(entry);
  if (!enabled_ || std::find(skipped_.begin(), skipped_.end(), action) != skipped_.end()) return;
  if (entries_.size() >= most_entries_) entries_.pop_front();
  entries_.push_back(std::move(entry));
}

}  // namespace gpuledger::pytorch
