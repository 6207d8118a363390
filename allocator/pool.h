// allocator/pool.h - the blocks of one stream and kind: a range, cut into blocks that tile it, and bins of the cached ones.
//
//   [ taken | cached | dead | unmapped ........ | cached | taken | unmapped: the open end ................ ]
//
// Two cached neighbours never stand side by side, nor two unmapped ones: they merge at once. Handles are extents of the
// range; one lies in no unmapped block, and every other byte is in exactly one (a dead block is all of an extent that has
// lost its handle). The fast path is Take and Put: bins with a bitmap, eight an octave, the lowest-addressed fitting block
// first (README.md, "Placement"), always split, low end first; of handles they know nothing. The rest is the slow path's.
//
// Thread-safe by `mutex`, which the caller holds. A pool knows no upstream: Placement creates handles and maps them.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bin.h"
#include "block.h"
#include "gpuledger/upstream.h"
#include "stream_use.h"
#include "sync.h"

namespace gpuledger {

// Storage for blocks: never shrinks, reuses what is given back.
class BlockStore {
 public:
  Block* Make();
  void Recycle(Block* block);
  template <class Visit>
  void VisitNotes(Visit visit) const {
    for (const auto& blocks : storage_) visit(blocks.get(), sizeof(*blocks));
  }

 private:
  std::vector<std::unique_ptr<std::array<Block, 128>>> storage_;
  std::vector<Block*> unused_;
};

struct Extent {
  Bytes offset;
  Bytes size;
  [[nodiscard]] Bytes end() const { return offset + size; }
};

struct Handle {
  HandleId id;
  Bytes size;
};

// Where a request fits, and how many unmapped bytes it needs there.
struct Window {
  Bytes offset;
  Bytes missing;
};

// A part of a window without memory: `needed` of it, and the unmapped `room` around, which a larger handle may spill into.
struct Gap {
  Extent needed;
  Extent room;
};

// A handle whose every byte is cached.
struct FreeHandle {
  Pool* pool;
  Bytes offset;
  Handle handle;
  uint64_t freed_at;
};

enum class PoolKind : uint8_t {
  kSmall,  // requests up to Pool::kLargestSmall
  kLarge,
  kWhole,  // its range came with its memory (Capabilities::mapping is false): one handle, which the upstream does not know
};

class Pool {
 public:
  static constexpr Bytes kLargestSmall = Bytes(uint64_t{256} << 10);

  // `range.size` is at most Bin::kLongestRange. The pool is all open end, but of kWhole: that is all cached.
  Pool(const StreamUse& use, PoolKind kind, Range range, Bytes granularity, uint32_t number);
  // A pool of kWhole, all cached, whose range is gone, begins again with another one.
  void BeginAgain(const StreamUse& use, Range range) GPULEDGER_REQUIRES(mutex);

  mutable Mutex mutex;  // lock order: growth -> pending -> pool -> ledger; two pools only under growth

  // Whose it is, and when the work on its memory is done; changes only under growth, when no block of it is in a cache.
  [[nodiscard]] const StreamUse& use() const { return *use_; }
  [[nodiscard]] Stream stream() const { return use_->key.stream; }
  [[nodiscard]] PoolKind kind() const { return kind_; }
  [[nodiscard]] Range range() const { return range_; }
  [[nodiscard]] uint32_t number() const { return number_; }  // in the order in which an allocator made its pools
  [[nodiscard]] DevicePtr address(const Block& block) const { return range_.base + block.offset; }

  // ---- the fast path ----

  // The lowest-addressed cached block that fits, of its bin or the next non-empty one, cut to size; null on a miss. It is
  // taken. No upstream call; a host allocation only when more blocks exist than ever before.
  Block* Take(SizeClass size_class) GPULEDGER_REQUIRES(mutex);
  // The cached memory at [offset, offset + size), cut out of its block: taken. Null if not all of it is cached.
  Block* TakeAt(Bytes offset, Bytes size) GPULEDGER_REQUIRES(mutex);
  // Makes a taken block cached, and merges it with cached neighbours. `now` is the time of its free, for donors' order.
  void Put(Block* block, uint64_t now) GPULEDGER_REQUIRES(mutex);

  // The same without waiting for the lock, which is not held: whoever has it now, or next, does it. `freed_at` is set.
  void PutOrDefer(Block* block) GPULEDGER_EXCLUDES(mutex);
  [[nodiscard]] const Block* deferred() const { return deferred_.load(std::memory_order_acquire); }

  // ---- the slow path ----

  // Free space of `size` that needs the fewest unmapped bytes, the lowest of several; none if the range is too small.
  [[nodiscard]] std::optional<Window> FindWindow(Bytes size) const GPULEDGER_REQUIRES(mutex);
  // The same at the open end alone: what is cached right before it counts.
  [[nodiscard]] std::optional<Window> OpenEnd(Bytes size) const GPULEDGER_REQUIRES(mutex);
  // What of [offset, offset + size) is unmapped, lowest first.
  [[nodiscard]] std::vector<Gap> Gaps(Bytes offset, Bytes size) const GPULEDGER_REQUIRES(mutex);
  // `handle` is mapped at `offset`, in unmapped space, which becomes cached.
  void NoteMapped(Bytes offset, Handle handle, uint64_t now) GPULEDGER_REQUIRES(mutex);
  // Cuts [offset, offset + size), all cached, out of its block: taken.
  Block* Carve(Bytes offset, Bytes size) GPULEDGER_REQUIRES(mutex);
  // Appends the handles that are wholly cached, outside of `keep`.
  void ListFreeHandles(Extent keep, std::vector<FreeHandle>& list) const GPULEDGER_REQUIRES(mutex);
  // Takes a handle out of the pool if it is still wholly cached: its extent is a dead block, which is returned; null if not.
  Block* Detach(Bytes offset, Handle handle) GPULEDGER_REQUIRES(mutex);
  // Undoes Detach: the block is cached again, as it was.
  void Reattach(Block* dead, Handle handle) GPULEDGER_REQUIRES(mutex);
  // The old mapping of a dead block is gone: it is unmapped.
  void Bury(Block* dead) GPULEDGER_REQUIRES(mutex);

  // ---- what is read ----

  // Where it and its blocks are: addresses of blocks are noted there.
  template <class Visit>
  void VisitNotes(Visit visit) const GPULEDGER_REQUIRES(mutex) {
    visit(this, sizeof(*this));
    store_.VisitNotes(visit);
  }
  [[nodiscard]] Block* first() const GPULEDGER_REQUIRES(mutex) { return first_; }
  [[nodiscard]] Bytes mapped() const GPULEDGER_REQUIRES(mutex) { return mapped_; }  // of its handles
  // What of it is wholly cached handles.
  [[nodiscard]] Bytes spare() const GPULEDGER_REQUIRES(mutex);
  // The structure: tiling, merged neighbours, bins and bitmap, handles. kInternal names what does not hold.
  [[nodiscard]] absl::Status Check() const GPULEDGER_REQUIRES(mutex);

 private:
  friend class PoolLock;
  friend class Placement;  // which locks all pools at once
  void PutDeferred() GPULEDGER_REQUIRES(mutex);
  void Unlock() GPULEDGER_RELEASE(mutex);
  // For whoever holds another pool's lock: pools have no order among themselves, and need none, because growth is held, and
  // whoever has a pool's lock without growth waits for no other. By trying, so that tools that look for an order find none.
  void LockBesideAnother() GPULEDGER_ACQUIRE(mutex);
  Block* Split(Block* block, Bytes low_size);  // the high part, in the same space, in no bin
  Block* MergeWithRight(Block* block);
  void InsertBin(Block* block);
  void EraseBin(size_t bin, size_t index);
  void RemoveBin(const Block* block);
  // `changed` takes the place of the entry at `index` of `bin`: it lies between the same neighbours.
  void ReplaceBin(size_t bin, size_t index, Block* changed);
  // The cached block that holds all of the extent; null if none does.
  [[nodiscard]] Block* CachedHolding(Extent extent) const;
  // The cached block, in its bin, loses all but the extent, which is in no bin.
  Block* CutOut(Block* block, Extent extent);
  // The unmapped block that holds `offset`.
  [[nodiscard]] Block* UnmappedHolding(Bytes offset) const;
  // Improves `best` by the run of cached and unmapped blocks around `inside`, which is unmapped; the run's end.
  Bytes SearchRun(const Block* inside, Bytes size, std::optional<Window>& best) const;

  const StreamUse* use_;
  const PoolKind kind_;
  Range range_;
  const Bytes granularity_;
  const uint32_t number_;
  BlockStore store_;
  Block* first_ = nullptr;
  std::map<Bytes, Handle> handles_;    // by offset
  std::map<Bytes, Block*> unmapped_;   // by offset: runs with room for more are found from here
  Bytes mapped_;
  std::array<Bin, SizeClass::kBinCount> bins_;
  std::array<uint64_t, SizeClass::kBinCount / 64> bitmap_{};
  alignas(64) std::atomic<Block*> deferred_ = nullptr;
  static_assert(SizeClass::kBinCount % 64 == 0);
};

// Holds a pool's lock while it lives, with what other threads have put there meanwhile: who looks for free memory sees it all.
class [[nodiscard]] GPULEDGER_SCOPED_CAPABILITY PoolLock {
 public:
  [[nodiscard]] explicit PoolLock(Pool& pool) GPULEDGER_ACQUIRE(pool.mutex) : pool_(pool) {
    pool.mutex.Lock();
    pool.PutDeferred();
  }
  ~PoolLock() GPULEDGER_RELEASE() { pool_.Unlock(); }
  PoolLock(const PoolLock&) = delete;
  PoolLock& operator=(const PoolLock&) = delete;

 private:
  Pool& pool_;
};

}  // namespace gpuledger
