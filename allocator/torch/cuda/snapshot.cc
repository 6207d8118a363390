#include "snapshot.h"

#include <algorithm>
#include <deque>

#include <c10/cuda/CUDAAllocatorConfig.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/ApproximateClock.h>

namespace gpuledger::pytorch {
namespace {

namespace viewed = c10::CachingDeviceAllocator;
using c10::CachingAllocator::AcceleratorAllocatorConfig;
using c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig;

// Of all devices, as PyTorch has it.
struct Annotations {
  std::mutex mutex;
  bool enabled = false;
  size_t most = 1;
  std::deque<viewed::AnnotationEntry> entries;
  static Annotations& All() {
    static auto& all = *new Annotations;
    return all;
  }
};

viewed::BlockInfo ViewOf(const BlockInfo& block) {
  viewed::BlockInfo view;
  view.size = block.size.count();
  view.allocated = block.state == BlockState::kInUse;
  view.active = view.allocated || block.state == BlockState::kPending;
  if (view.active) view.requested_size = block.charge.front().requested.count();
  return view;
}

// One view for each run of mapped blocks.
void AddViews(const SegmentInfo& segment, c10::DeviceIndex device, MempoolId_t pool, bool expandable, std::vector<viewed::SegmentInfo>* views) {
  bool open = false;
  for (const BlockInfo& block : segment.blocks) {
    if (block.state == BlockState::kUnmapped) {
      open = false;
      continue;
    }
    if (!open) {
      viewed::SegmentInfo& view = views->emplace_back();
      view.device = device;
      view.address = block.address.address();
      view.stream = segment.stream.raw();
      view.is_large = !segment.small;
      view.is_expandable = expandable;
      view.owner_private_pool_id = pool;
      open = true;
    }
    viewed::SegmentInfo& view = views->back();
    const viewed::BlockInfo seen = ViewOf(block);
    view.total_size += seen.size;
    if (seen.allocated) view.allocated_size += seen.size;
    if (seen.active) view.active_size += seen.size;
    if (seen.active) view.requested_size += seen.requested_size;
    // Free neighbours are one block, as in PyTorch, also where a thread's cache holds them apart.
    if (!seen.active && !view.blocks.empty() && !view.blocks.back().active) {
      view.blocks.back().size += seen.size;
    } else {
      view.blocks.push_back(seen);
    }
  }
}

std::vector<viewed::SegmentInfo> ViewsOf(Device& device) {
  std::vector<viewed::SegmentInfo> views;
  const bool expandable = device.upstream().capabilities().mapping;
  for (const auto& allocator : device.pools().Allocators()) {
    for (const SegmentInfo& segment : allocator->segments()) {
      AddViews(segment, device.index(), device.pools().IdOf(*allocator, segment.pool), expandable && allocator.get() == &device.core(), &views);
    }
  }
  std::sort(views.begin(), views.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
  return views;
}

void AddContexts(const History& history, viewed::SegmentInfo& view) {
  // As in PyTorch: once a segment is split its stack is that of a block that is gone.
  if (view.blocks.front().active) view.context_when_allocated = history.ContextOfMemory(view.address);
  size_t address = view.address;
  for (viewed::BlockInfo& block : view.blocks) {
    if (block.active) block.context_when_allocated = history.ContextOfBlock(address);
    address += block.size;
  }
}

c10::cuda::CUDACachingAllocator::AllocatorConfigInfo Configuration() {
  c10::cuda::CUDACachingAllocator::AllocatorConfigInfo info;
  info.garbage_collection_threshold = AcceleratorAllocatorConfig::garbage_collection_threshold();
  info.max_split_size = AcceleratorAllocatorConfig::max_split_size();
  info.pinned_num_register_threads = CUDAAllocatorConfig::pinned_num_register_threads();
  info.expandable_segments = true;
  info.release_lock_on_malloc = CUDAAllocatorConfig::release_lock_on_cudamalloc();
  info.pinned_use_host_register = CUDAAllocatorConfig::pinned_use_cuda_host_register();
  info.graph_capture_record_stream_reuse = CUDAAllocatorConfig::graph_capture_record_stream_reuse();
  info.last_allocator_settings = c10::CachingAllocator::getAllocatorSettings();
  info.roundup_power2_divisions = AcceleratorAllocatorConfig::roundup_power2_divisions();
  return info;
}

}  // namespace

c10::ApproximateClockToUnixTimeConverter& Clock() {
  static auto& clock = *new c10::ApproximateClockToUnixTimeConverter;
  return clock;
}

SnapshotInfo Snapshot(Devices& devices, MempoolId_t pool, bool include_traces) {
  SnapshotInfo snapshot;
  snapshot.config_metadata = Configuration();
  // The clock's rate is the more exact the longer ago its converter was made.
  const auto nanoseconds = Clock().makeConverter();
  const auto unix_time = [&nanoseconds](c10::approx_time_t time) { return nanoseconds(time) / 1000; };  // microseconds, as PyTorch has it
  if (include_traces) snapshot.device_traces.resize(static_cast<size_t>(c10::cuda::device_count()));  // opened or not
  for (Device* const device : devices.AllOpen()) {
    std::vector<viewed::SegmentInfo> views = ViewsOf(*device);
    if (pool != MempoolId_t{0, 0}) std::erase_if(views, [&](const auto& view) { return view.owner_private_pool_id != pool; });
    device->WithLock([&](Statistics& statistics, History& history) {
      for (viewed::SegmentInfo& view : views) AddContexts(history, view);
      if (include_traces) snapshot.device_traces.at(static_cast<size_t>(device->index())) = history.entries();
      // In the next snapshot's traces, not in its own.
      history.Note(TraceEntry::SNAPSHOT, 0, static_cast<size_t>(statistics.active()), nullptr, {0, 0}, nullptr);
    });
    snapshot.segments.insert(snapshot.segments.end(), std::make_move_iterator(views.begin()), std::make_move_iterator(views.end()));
  }
  for (std::vector<TraceEntry>& traces : snapshot.device_traces) {
    for (TraceEntry& entry : traces) entry.time_.t_ = unix_time(entry.time_.approx_t_);
  }
  Annotations& annotations = Annotations::All();
  const std::lock_guard lock(annotations.mutex);
  snapshot.external_annotations.assign(annotations.entries.begin(), annotations.entries.end());
  for (viewed::AnnotationEntry& entry : snapshot.external_annotations) entry.time_.t_ = unix_time(entry.time_.approx_t_);
  return snapshot;
}

void Annotate(const std::vector<std::pair<std::string, std::string>>& annotation) {
  Annotations& all = Annotations::All();
  const std::lock_guard lock(all.mutex);
  if (!all.enabled) return;
  viewed::AnnotationEntry entry(-1, c10::getApproximateTime());
  for (const auto& [name, value] : annotation) entry.recordUserMetadata(name, value);
  if (all.entries.size() >= all.most) all.entries.pop_front();
  all.entries.push_back(std::move(entry));
}

void ConfigureAnnotations(bool enabled, size_t most_entries, bool clear) {
  Annotations& all = Annotations::All();
  const std::lock_guard lock(all.mutex);
  all.enabled = enabled;
  all.most = std::max<size_t>(most_entries, 1);
  if (clear || !enabled) all.entries.clear();
}

bool AnnotationsEnabled() {
  Annotations& all = Annotations::All();
  const std::lock_guard lock(all.mutex);
  return all.enabled;
}

std::optional<Range> SegmentAt(Device& device, uint64_t address) {
  for (const viewed::SegmentInfo& view : ViewsOf(device)) {
    if (view.address <= address && address - view.address < view.total_size) return Range{DevicePtr(device.id(), view.address), Bytes(view.total_size)};
  }
  return {};
}

}  // namespace gpuledger::pytorch
