// The path of an entry: from a record to bytes in the thread's segment.
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "recorder_impl.h"

namespace gpuledger {

using trace::Ring;
using trace::SegmentState;

namespace {

// Of a record; what is longer asks for room itself.
constexpr size_t kLongestRecord = 160;
constexpr uint64_t kAskDiskEveryNs = 10'000'000;

// Recorders by number, for threads that end when their recorder may be gone.
struct Recorders {
  std::mutex mutex;
  std::vector<std::pair<uint64_t, Recorder::Impl*>> live;
  const Recorders* parents = nullptr;  // of the process that forked this one: abandoned, and no leak
};
std::atomic<Recorders*>& Pointer() {
  static std::atomic<Recorders*> pointer{new Recorders};  // never destroyed: threads end after main()
  return pointer;
}
Recorders& All() { return *Pointer().load(std::memory_order_acquire); }
// What the parent was doing with its list, nobody knows.
void BeginAgainInChild() {
  auto* const fresh = new Recorders;
  fresh->parents = &All();
  Pointer().store(fresh, std::memory_order_release);
}

// Gives a thread's rings back as it ends.
struct ThreadEnd {
  std::vector<std::pair<uint64_t, ThreadId>> rings;
  ~ThreadEnd() {
    over = true;
    const std::lock_guard lock(All().mutex);
    for (const auto& [number, thread] : rings) {
      for (const auto& [live, recorder] : All().live) {
        if (live == number) recorder->LeaveRing(thread);
      }
    }
  }
  static thread_local bool over;
};
thread_local bool ThreadEnd::over = false;

}  // namespace

// ---- the hot path --------------------------------------------------------------------------------------------------------

void Recorder::Write(const Record& record) noexcept {
  Impl& r = *impl_;
  Ring* const ring = r.RingOf(record.thread);
  if (ring == nullptr) [[unlikely]] return;
  if (record.owner.value() != ring->known_owner) [[unlikely]] r.NameOwner(*ring, record.owner, record.time.value());
  if (record.site.value() != ring->known_site && record.kind == RecordKind::kAllocate) [[unlikely]] {
    r.NameSite(*ring, record.site, record.time.value());
  }
  if (static_cast<size_t>(ring->limit - ring->at) < kLongestRecord) [[unlikely]] r.MakeRoom(*ring, kLongestRecord);
  if (ring->at == nullptr) [[unlikely]] return;
  Impl::Commit(*ring, trace::Encode(record, ring->deltas, ring->at), record.time.value());
}

void Recorder::Impl::Commit(Ring& ring, size_t bytes, uint64_t time) {
  ring.at += bytes;
  if (time > ring.last_ns.load(std::memory_order_relaxed)) ring.last_ns.store(time, std::memory_order_relaxed);
  trace::SegmentHeader& segment = *ring.segment;
  const std::atomic_ref entries(segment.entries);
  const uint32_t before = entries.load(std::memory_order_relaxed);
  if (before == 0) std::atomic_ref(segment.first_ns).store(time, std::memory_order_relaxed);
  entries.store(before + 1, std::memory_order_relaxed);
  const auto length = static_cast<uint32_t>(ring.at - reinterpret_cast<unsigned char*>(ring.segment) - sizeof(trace::SegmentHeader));
  std::atomic_ref(segment.committed).store(length, std::memory_order_release);
}

Ring* Recorder::Impl::RingOf(ThreadId thread) {
  const uint32_t id = thread.value();
  if (id < kLeaves * kLeaf) [[likely]] {
    const Leaf* const leaf = (*by_thread)[id / kLeaf].load(std::memory_order_acquire);
    Ring* const ring = leaf == nullptr ? nullptr : (*leaf)[id % kLeaf].load(std::memory_order_relaxed);
    if (ring != nullptr) [[likely]] return ring;
  }
  return MakeRing(thread);
}

// ---- segments ------------------------------------------------------------------------------------------------------------

void Recorder::Impl::BeginSegment(Ring& ring, uint32_t index) {
  trace::SegmentHeader* const segment = ring.SegmentAt(index);
  // An exchange, so that nothing below can be seen in a segment that still has its old number.
  std::atomic_ref(segment->number).exchange(0, std::memory_order_acq_rel);
  std::atomic_ref(segment->committed).store(0, std::memory_order_relaxed);
  segment->entries = 0;
  segment->first_ns = 0;
  segment->thread = ring.thread.value();
  std::atomic_ref(segment->number).store(next_segment.fetch_add(1, std::memory_order_relaxed), std::memory_order_release);
  ring.states[index].store(SegmentState::kWriting, std::memory_order_relaxed);
  ring.current = index;
  ring.segment = segment;
  ring.at = reinterpret_cast<unsigned char*>(segment + 1);
  ring.limit = reinterpret_cast<unsigned char*>(segment) + trace::kSegmentBytes;
  ring.deltas = {};
  ring.last_ns = 0;
  ring.known_owner = ring.known_site = UINT32_MAX;  // the segment that named them may have been lost
}

void Recorder::Impl::MakeRoom(Ring& ring, size_t bytes) {
  if (static_cast<size_t>(ring.limit - ring.at) >= bytes) return;
  if (ring.segment != nullptr) {
    ring.last_times[ring.current] = ring.last_ns;
    ring.states[ring.current].store(SegmentState::kFull, std::memory_order_release);
    full_segments.fetch_add(1, std::memory_order_release);
    full_segments.notify_one();
  }
  while (true) {
    for (uint32_t i = 1; i <= trace::kSegmentsInRing; ++i) {
      const uint32_t index = (ring.current + i) % trace::kSegmentsInRing;
      if (ring.states[index].load(std::memory_order_acquire) == SegmentState::kEmpty) return BeginSegment(ring, index);
    }
    // All are full: the recorder's thread is behind. It can have claimed one at a time.
    for (uint32_t i = 1; i <= trace::kSegmentsInRing; ++i) {
      const uint32_t index = (ring.current + i) % trace::kSegmentsInRing;
      SegmentState full = SegmentState::kFull;
      if (!ring.states[index].compare_exchange_strong(full, SegmentState::kDraining, std::memory_order_acq_rel)) continue;
      if (ring.compressor == nullptr) ring.compressor = std::make_unique<trace::Compressor>();
      Drain(ring, index, *ring.compressor);
      break;
    }
  }
}

void Recorder::Impl::Register() {
  // A child knows none of its parent's recorders, and their lock may have been held by a thread that it does not have.
  static const int handler = pthread_atfork(nullptr, nullptr, BeginAgainInChild);
  static_cast<void>(handler);
  const std::lock_guard lock(All().mutex);
  All().live.emplace_back(number, this);
}
void Recorder::Impl::Unregister() {
  const std::lock_guard lock(All().mutex);
  std::erase_if(All().live, [this](const auto& one) { return one.second == this; });
}

// ---- rings ---------------------------------------------------------------------------------------------------------------

Ring* Recorder::Impl::MakeRing(ThreadId thread) {
  if (ended.load(std::memory_order_acquire) || Abandoned()) return nullptr;
  const uint32_t id = thread.value();
  const auto now = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  if (id >= kLeaves * kLeaf || now < no_ring_before.load(std::memory_order_relaxed)) {
    file->CountLost(1);
    return nullptr;
  }
  const std::lock_guard lock(mutex);
  Leaf* leaf = (*by_thread)[id / kLeaf].load(std::memory_order_acquire);
  if (leaf == nullptr) {
    leaf = leaves.emplace_back(std::make_unique<Leaf>()).get();
    (*by_thread)[id / kLeaf].store(leaf, std::memory_order_release);
  }
  Ring* ring = nullptr;
  for (const auto& one : rings) {
    bool free = false;
    if (one->in_use.compare_exchange_strong(free, true)) {
      ring = one.get();
      break;
    }
  }
  if (ring == nullptr) {
    uint64_t offset = 0;
    unsigned char* const base = file->MapRing(&offset);
    if (base == nullptr) {
      no_ring_before.store(now + kAskDiskEveryNs, std::memory_order_relaxed);
      file->CountLost(1);
      return nullptr;
    }
    ring = rings.emplace_back(std::make_unique<Ring>()).get();
    ring->base = base;
    ring->offset = offset;
    trace::BlockHeader header{};
    header.magic = trace::kBlockMagic;
    header.type = trace::BlockType::kRing;
    header.stored_bytes = header.raw_bytes = trace::kRingBytes - sizeof header;
    header.previous_ring = file->header().last_ring;
    header.checksum = trace::HeaderChecksum(header);
    std::memcpy(base, &header, sizeof header);
    std::atomic_ref(file->header().last_ring).store(offset, std::memory_order_release);
  }
  ring->thread = thread;
  ring->segment = nullptr;
  ring->at = ring->limit = nullptr;
  MakeRoom(*ring, 1);
  (*leaf)[id % kLeaf].store(ring, std::memory_order_release);
  // A thread that is past this keeps its ring: nobody will say that it is over.
  if (!ThreadEnd::over) {
    thread_local ThreadEnd end;
    end.rings.emplace_back(number, thread);
  }
  return ring;
}

void Recorder::Impl::LeaveRing(ThreadId thread) {
  const std::lock_guard lock(mutex);
  Leaf* const leaf = (*by_thread)[thread.value() / kLeaf].load();
  if (leaf == nullptr) return;
  Ring* const ring = (*leaf)[thread.value() % kLeaf].exchange(nullptr);
  if (ring == nullptr) return;
  // What it has written stays where it is until the segment is drained; the next thread begins another one.
  ring->last_times[ring->current] = ring->last_ns;
  ring->states[ring->current].store(SegmentState::kFull, std::memory_order_release);
  full_segments.fetch_add(1, std::memory_order_release);
  full_segments.notify_one();
  ring->segment = nullptr;
  ring->in_use.store(false, std::memory_order_release);
}

}  // namespace gpuledger
