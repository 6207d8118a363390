// Full segments become compressed blocks of the file.
#include <signal.h>
#include <zstd.h>

#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "recorder_impl.h"

namespace gpuledger {

using trace::BlockHeader;
using trace::Ring;
using trace::SegmentState;

namespace {

constexpr int kLevel = 1;
constexpr auto kMostWaitedAtEnd = std::chrono::milliseconds(200);

// Threads may be draining segments of their own: the process is about to end, and they take some hundred microseconds.
bool AllDrained(const std::vector<Ring*>& rings) {
  const auto until = std::chrono::steady_clock::now() + kMostWaitedAtEnd;
  for (const Ring* const ring : rings) {
    for (const auto& state : ring->states) {
      while (state.load(std::memory_order_acquire) == SegmentState::kDraining) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::this_thread::yield();
      }
    }
  }
  return true;
}

}  // namespace

trace::Compressor::Compressor() : context_(ZSTD_createCCtx()) {
  ZSTD_CCtx_setParameter(context_, ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(context_, ZSTD_c_checksumFlag, 1);
}
trace::Compressor::~Compressor() { ZSTD_freeCCtx(context_); }

std::span<const unsigned char> trace::Compressor::MakeBlock(BlockHeader header, std::span<const unsigned char> raw) {
  block_.resize(sizeof header + ZSTD_compressBound(raw.size()));
  const size_t stored = ZSTD_compress2(context_, block_.data() + sizeof header, block_.size() - sizeof header, raw.data(), raw.size());
  if (ZSTD_isError(stored) != 0) return {};
  header.magic = kBlockMagic;
  header.stored_bytes = static_cast<uint32_t>(stored);
  header.raw_bytes = static_cast<uint32_t>(raw.size());
  header.checksum = HeaderChecksum(header);
  std::memcpy(block_.data(), &header, sizeof header);
  return std::span(block_).first(sizeof header + stored);
}

void Recorder::Impl::Drain(Ring& ring, uint32_t index, trace::Compressor& with) {
  trace::SegmentHeader& segment = *ring.SegmentAt(index);
  // Of a full segment it stands still; at the end of the process its thread may be inside.
  const uint32_t committed = std::atomic_ref(segment.committed).load(std::memory_order_acquire);
  if (committed != 0) {
    BlockHeader header{};
    header.type = trace::BlockType::kSegment;
    header.number = segment.number;
    header.first_ns = std::atomic_ref(segment.first_ns).load(std::memory_order_relaxed);
    header.last_ns = ring.last_times[index];
    header.thread = segment.thread;
    header.entries = std::atomic_ref(segment.entries).load(std::memory_order_relaxed);
    const auto* const raw = reinterpret_cast<const unsigned char*>(&segment + 1);
    const std::span<const unsigned char> block = with.MakeBlock(header, {raw, committed});
    if (block.empty() || !file->Append(block)) {
      file->CountLost(header.entries);
      ForgetNamesIn({raw, committed});
    }
  }
  ring.states[index].store(SegmentState::kEmpty, std::memory_order_release);
}

uint64_t Recorder::Impl::DrainFull() {
  std::vector<Ring*> all;
  {
    const std::lock_guard lock(mutex);
    for (const auto& ring : rings) all.push_back(ring.get());
  }
  uint64_t drained = 0;
  for (Ring* const ring : all) {
    // Oldest first, so that the file is nearly in order.
    for (uint32_t i = 1; i <= trace::kSegmentsInRing; ++i) {
      const uint32_t index = (ring->current + i) % trace::kSegmentsInRing;
      SegmentState full = SegmentState::kFull;
      if (!ring->states[index].compare_exchange_strong(full, SegmentState::kDraining, std::memory_order_acq_rel)) continue;
      Drain(*ring, index, compressor);
      ++drained;
    }
  }
  return drained;
}

absl::Status Recorder::Impl::StartDrainer(bool with_snapshot) {
  // It handles no signal of the program.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  absl::Status status;
  try {
    drainer = std::thread([this, with_snapshot] { DrainLoop(with_snapshot); });
  } catch (const std::system_error& error) {
    status = absl::ResourceExhaustedError(std::string("the recorder's thread cannot be made: ") + error.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return status;
}

void Recorder::Impl::DrainLoop(bool with_snapshot) {
  if (with_snapshot) BeginWithSnapshot();
  while (!ended.load(std::memory_order_acquire)) {
    const uint32_t seen = full_segments.load(std::memory_order_acquire);
    if (DrainFull() == 0) full_segments.wait(seen, std::memory_order_acquire);
    if (file->end() >= fold_again_at) Fold();
  }
}

void Recorder::Impl::Finish() {
  if (Abandoned() || ended.exchange(true)) return;
  full_segments.fetch_add(1);
  full_segments.notify_all();
  if (drainer.joinable()) drainer.join();
  std::vector<Ring*> all;
  {
    const std::lock_guard lock(mutex);
    for (auto& leaf : *by_thread) {  // nobody finds a ring any more
      if (Leaf* const one = leaf.load()) {
        for (auto& ring : *one) ring.store(nullptr, std::memory_order_release);
      }
    }
    for (const auto& ring : rings) {
      all.push_back(ring.get());
      for (auto& state : ring->states) {
        SegmentState writing = SegmentState::kWriting;
        if (state.compare_exchange_strong(writing, SegmentState::kFull)) {
          ring->last_times[static_cast<size_t>(&state - ring->states.data())] = ring->last_ns.load(std::memory_order_relaxed);
        }
      }
    }
  }
  const uint64_t lost = file->header().lost;
  DrainFull();
  // The rings stay as they are where they have what found no room, or a thread is still draining one.
  if (file->header().lost != lost || !AllDrained(all)) return;
  std::atomic_ref(file->header().ended).store(1, std::memory_order_release);
  // Everything is in blocks: rings need no space any more.
  file->header().last_ring = 0;
  for (const Ring* const ring : all) file->GiveBackRing(ring->base, ring->offset);
}

}  // namespace gpuledger
