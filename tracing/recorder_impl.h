// tracing/recorder_impl.h - the data behind Recorder: rings, and who drains them.
//
// A *ring* is a thread's: segments in the file, mapped. One is being written, the others are empty, full or being drained.
// Its thread alone writes; full segments are drained by the recorder's thread, or by the ring's own where that is behind, and
// whoever does it has claimed the segment by a compare-and-swap. A ring whose thread is over goes to the next new thread.
//
// Invariants: an entry is in a ring's segment or, once that is drained, in the block with the segment's number, and in both
// for a moment. `committed` of a segment covers whole entries alone. Names are written before what refers to them.
//
// Forks: rings and header are not mapped in a child, and the table of rings is empty there. So nothing that was the parent's is
// touched, whatever the child does and whichever of its fork handlers runs first; all that is left of a recorder is abandoned.
//
// Locks: `mutex` guards the list of rings and making them; nothing on the path of a Write takes it once its thread has a ring.
#pragma once

#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "gpuledger/recorder.h"
#include "id_set.h"
#include "recorder_file.h"
#include "trace_format.h"

struct ZSTD_CCtx_s;

namespace gpuledger {

namespace trace {

// Of one thread at a time.
class Compressor {
 public:
  Compressor();
  ~Compressor();
  Compressor(const Compressor&) = delete;
  Compressor& operator=(const Compressor&) = delete;
  // The whole block: `header` completed, and `raw` compressed. Valid until the next call; empty if zstd failed.
  std::span<const unsigned char> MakeBlock(BlockHeader header, std::span<const unsigned char> raw);

 private:
  ZSTD_CCtx_s* const context_;
  std::vector<unsigned char> block_;
};

enum class SegmentState : uint8_t { kEmpty, kWriting, kFull, kDraining };

struct alignas(64) Ring {
  // Of the thread that writes.
  unsigned char* at = nullptr;      // where the next entry goes
  unsigned char* limit = nullptr;   // the end of the segment
  SegmentHeader* segment = nullptr;
  Deltas deltas;
  uint32_t known_owner = UINT32_MAX, known_site = UINT32_MAX;  // named in this file for certain
  std::atomic<uint32_t> current{0};
  std::atomic<uint64_t> last_ns{0};

  std::array<std::atomic<SegmentState>, kSegmentsInRing> states{};
  std::array<uint64_t, kSegmentsInRing> last_times{};  // of full segments
  unsigned char* base = nullptr;
  uint64_t offset = 0;
  ThreadId thread{0};
  std::atomic<bool> in_use{true};
  std::unique_ptr<Compressor> compressor;  // of its thread, once that has drained itself

  [[nodiscard]] SegmentHeader* SegmentAt(uint32_t index) const {
    return reinterpret_cast<SegmentHeader*>(base + kRingHead + index * kSegmentBytes);
  }
};

}  // namespace trace

struct Recorder::Impl {
  Impl(RecorderOptions its_options, std::unique_ptr<trace::RecorderFile> its_file);
  ~Impl();

  const RecorderOptions options;
  const uint64_t number;  // never used again
  const pid_t process = getpid();
  [[nodiscard]] bool Abandoned() const { return getpid() != process; }
  const std::unique_ptr<trace::RecorderFile> file;

  // ---- rings (recorder_rings.cc) ----

  // Rings by thread, two levels; a thread's is null until it writes.
  static constexpr size_t kLeaves = 4096, kLeaf = 1024;
  using Leaf = std::array<std::atomic<trace::Ring*>, kLeaf>;
  using Leaves = std::array<std::atomic<Leaf*>, kLeaves>;
  Leaves* const by_thread;  // zeros in a forked child
  std::vector<std::unique_ptr<Leaf>> leaves;  // under `mutex`; those that it points to
  std::mutex mutex;
  std::vector<std::unique_ptr<trace::Ring>> rings;   // under `mutex`
  std::atomic<uint64_t> next_segment{1};
  std::atomic<bool> ended{false};
  std::atomic<uint64_t> no_ring_before{0};  // when to ask the disk for room again

  void Register();
  void Unregister();
  // The ring of the calling thread; null if there is no room for one, or the recorder has ended.
  trace::Ring* RingOf(ThreadId thread);
  trace::Ring* MakeRing(ThreadId thread);
  void LeaveRing(ThreadId thread);  // as the thread ends
  // Room for `bytes` more, in a new segment if need be.
  void MakeRoom(trace::Ring& ring, size_t bytes);
  void BeginSegment(trace::Ring& ring, uint32_t index);
  static void Commit(trace::Ring& ring, size_t bytes, uint64_t time);
  void WriteExtra(trace::Ring& ring, const trace::ExtraEntry& entry);

  void Extra(trace::ExtraEntry entry) noexcept;  // of the calling thread, now

  // ---- names (recorder_names.cc) ----

  trace::IdSet owners, sites, modules;  // those that the file has
  void ForgetNamesIn(std::span<const unsigned char> segment);  // it was lost
  void NameOwner(trace::Ring& ring, OwnerId owner, uint64_t time);
  void NameSite(trace::Ring& ring, SiteId site, uint64_t time);
  // All of these, and their modules: for a snapshot.
  static void NameSites(const std::vector<uint32_t>& ids, const std::function<void(const trace::ExtraEntry&)>& write);

  // ---- draining (recorder_drain.cc) ----

  std::atomic<uint32_t> full_segments{0};  // counts up; the recorder's thread waits on it
  std::thread drainer;
  absl::Status StartDrainer(bool with_snapshot);
  void DrainLoop(bool with_snapshot);
  trace::Compressor compressor;  // of the drainer
  uint64_t DrainFull();  // all full segments of all rings; how many
  void Drain(trace::Ring& ring, uint32_t index, trace::Compressor& with);  // claimed by the caller
  void Finish();

  // ---- the live set (recorder_snapshot.cc) ----

  uint64_t folded_at = 0;      // the file's end when the last snapshot was taken; of the drainer
  uint64_t fold_again_at = 0;  // the file's end
  uint64_t last_snapshot = 0;  // its offset
  uint64_t given_back_to = 0;  // the file system has everything before it, but for rings
  void Fold();                 // at the limit
  void DropBefore(uint64_t offset);
  // Offset of its first block; kSnapshotDue if there was no room, 0 if there is nothing to write.
  uint64_t WriteSnapshot();
  void BeginWithSnapshot();  // the header's
};

}  // namespace gpuledger
