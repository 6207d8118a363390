// gpuledger/allocator.h - the caching allocator: blocks out of an upstream's memory, every byte with an owner.
//
// Each stream has two pools, for small and for large requests: reserved addresses, which handles of physical memory are
// mapped into as they grow. They are cut into blocks: in use, pending or cached. A freed block is reused at once on its own
// stream; if other streams used it (RecordStream), after the fences recorded at its free have passed. At every instant
//
//   reserved = in_use + pending + cached          reserved <= cap          in_use = ledger().usage().in_use
//
// Owner and role are read from the calling thread (owner.h) before any lock is taken. Small blocks (up to 64 KiB) come out
// of a cache of the thread's own: a hit takes the thread's own lock alone, makes no upstream call and allocates no host
// memory. On a miss the ladder is: passed fences, idle threads' caches, growth or donors (cached handles of any
// pool, moved), what is left in caches and released pools, callbacks, pending work waited for, once more, and then an
// out-of-memory report (kResourceExhausted) that names the top owners, what is cached, pending, stranded, and what would
// have helped.
//
// Streams. A stream is known by its handle. One that is destroyed while the allocator lives is retired first
// (RetireStream; or see AllocatorOptions::streams_may_vanish), because its handle may come back as another stream's. Each
// thread's per-thread default stream (handle 2) is a stream of its own; memory of it goes to other streams only after the
// device was synchronised. While a stream is captured into a graph, allocate from a private pool.
//
// Thread-safe. Misuse (double free, foreign pointer) is reported with owner and site, and aborts unless
// on_misuse = kWarn. The allocator outlives its buffers. Fork: a child finds every allocator whole and usable, with
// copy-on-write memory if its upstream has that (host-anonymous). A call may wait for another thread that is on the
// rungs which synchronise. A host that is out of memory for the allocator's own records ends the program.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/ledger.h"
#include "gpuledger/types.h"
#include "gpuledger/upstream.h"

namespace gpuledger {

enum class OnMisuse : uint8_t { kAbort, kWarn };

// One table (allocator/options.cc) names, parses and explains each field and its GPULEDGER_ variable.
struct GPULEDGER_EXPORT AllocatorOptions {
  Bytes cap = Bytes::Max();                // reserved never grows beyond it
  OnMisuse on_misuse = OnMisuse::kAbort;
  uint64_t report_owners = 10;             // owners named in an out-of-memory report
  // Streams may be destroyed without RetireStream. Then no call is made on a stream but those of the calls under way, and
  // memory of one stream goes to another only at the cap, and after the device was synchronised. A handle that comes back
  // as another stream's finds the old one's cached memory: whoever destroys a stream has waited for its work.
  bool streams_may_vanish = false;
  // Cached memory unused for so long is given back at the next growth; 0: never. Not where the upstream cannot map.
  std::chrono::nanoseconds release_after{};

  // Defaults overridden by GPULEDGER_CAP=2GiB, GPULEDGER_ON_MISUSE=warn, ... An unknown GPULEDGER_ name or a bad value is
  // kInvalidArgument; the message lists what is known.
  static absl::StatusOr<AllocatorOptions> FromEnvironment();
};

// Parses "8MiB", "1.5GiB", "4096", "2GB"; kInvalidArgument names what was wrong.
GPULEDGER_EXPORT absl::StatusOr<Bytes> ParseBytes(std::string_view text);

// The pools that everybody shares. Private pools are made with CreatePool.
inline constexpr PoolId kSharedPool{0};

struct Totals {
  Bytes reserved, in_use, pending, cached, cap, peak_reserved;
  uint64_t upstream_calls = 0;  // handles created, released, mapped and unmapped; ranges that come with their memory
};

enum class BlockState : uint8_t { kInUse, kPending, kCached, kUnmapped };

struct BlockInfo {
  DevicePtr address;
  Bytes size;
  BlockState state;
  std::vector<LiveAllocation> charge;  // one if in use or pending, none otherwise
};

// A range with its mapped handles; its blocks tile it from the base.
struct SegmentInfo {
  Range range;
  Stream stream;
  PoolId pool;
  bool small;  // for requests up to 256 KiB alone; false where ranges come with their memory
  std::vector<BlockInfo> blocks;
};

class CachingAllocator;

// Owning device memory; destruction returns the block. The null buffer (size 0) owns nothing.
class [[nodiscard]] GPULEDGER_EXPORT Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer() { Reset(); }

  [[nodiscard]] DevicePtr ptr() const { return ptr_; }
  [[nodiscard]] Bytes size() const { return size_; }
  [[nodiscard]] bool empty() const { return allocator_ == nullptr; }
  void Reset();

 private:
  friend class CachingAllocator;
  Buffer(CachingAllocator* allocator, DevicePtr ptr, Bytes size) : allocator_(allocator), ptr_(ptr), size_(size) {}
  CachingAllocator* allocator_ = nullptr;
  DevicePtr ptr_ = DevicePtr::Null(DeviceId{0});
  Bytes size_;
};

class GPULEDGER_EXPORT CachingAllocator {
 public:
  // The upstream and the sink (null for none) outlive the allocator.
  CachingAllocator(Upstream& upstream, AllocatorOptions options, RecordSink* sink = nullptr);
  // Every block must have been freed (fatal otherwise); waits for pending work and gives all memory back, but for that of
  // work that cannot be waited for: that is left to the upstream.
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  // `size` bytes, usable by work of `stream` ordered after this call; 512 B aligned; content undefined. Zero bytes is the
  // null buffer. Errors: kResourceExhausted with the report, kInvalidArgument for a stream of another device or a size
  // over 2^62, kNotFound for a private pool that was released, kFailedPrecondition in a forked child of a CUDA process, and
  // what the driver failed with. A failed request changes no block in use or pending; cached memory may have been given back.
  // Synchronises the device: only on the rungs below growth (pending work is waited for), where the upstream cannot alias,
  // and with AllocatorOptions::release_after.
  [[nodiscard]] absl::StatusOr<Buffer> Allocate(Bytes size, Stream stream, SiteId site = kNoSite, PoolId pool = kSharedPool) noexcept;
  // The same without a Buffer, for callers that keep only an address. Null for zero bytes. The block is made as large as
  // for a request of `room`, if that is more; the owner pays for that as rounding.
  [[nodiscard]] absl::StatusOr<DevicePtr> AllocateRaw(Bytes size, Stream stream, SiteId site = kNoSite, PoolId pool = kSharedPool,
                                                      Bytes room = Bytes()) noexcept;
  // The same at this very address, for a pool whose blocks lie where a captured graph expects them. kFailedPrecondition if
  // what is there is not all cached memory of that stream and pool, kInvalidArgument for no bytes. Never grows, waits for nothing.
  absl::Status AllocateAt(DevicePtr address, Bytes size, Stream stream, SiteId site = kNoSite, PoolId pool = kSharedPool,
                          Bytes room = Bytes()) noexcept;
  // Frees in the order of the block's stream; waits for no stream. Null is fine.
  void Free(DevicePtr block) noexcept;
  // The same, where several allocators may be meant: false, and nothing done, if no block in use of this one starts there.
  bool TryFree(DevicePtr block) noexcept;
  // Whether a block in use starts there. Takes no lock.
  [[nodiscard]] bool Owns(DevicePtr block) const noexcept;

  // Work of `stream` uses the block: after Free it stays pending until what `stream` has queued by then is done. Waits for
  // nothing. kNotFound if no block in use starts there, kInvalidArgument for a stream of another device.
  absl::Status RecordStream(DevicePtr block, Stream stream);
  // Re-tags a block in use (Ledger::Transfer). kNotFound if no block in use starts there.
  absl::Status Transfer(DevicePtr block, Payer to);
  // The block in use or pending that holds this address. kNotFound otherwise.
  [[nodiscard]] absl::StatusOr<LiveAllocation> Find(DevicePtr address) const;

  // Turns pending blocks whose fences have passed into cached ones; how many. Never waits.
  uint64_t CompletePending();
  // The same, but nothing if another thread is at it. Takes no lock where no block waits for a fence: for every request of a program that
  // wants blocks back as soon as they can be had. (A miss looks by itself.)
  uint64_t TryCompletePending();
  // Waits for all blocks that are pending now. Synchronises the device. Errors: those of a stream that could not be waited
  // for, and kInternal if some are pending afterwards, as when other threads go on freeing.
  absl::Status Settle();
  // Gives back every handle that holds no live or pending byte, after the streams that used it; returns how much.
  // Synchronises the device.
  Bytes ReleaseCached();

  // Gives back what ReleaseCached would, if it was cached for at least `age`. Neighbours that join count as free since
  // the larger one of them was, but where ranges come with their memory since the last one was. Synchronises the device.
  Bytes ReleaseIdle(std::chrono::nanoseconds age);

  // To be called before `stream` is destroyed: waits for its work. Its blocks in use stay good and are freed as ever; a
  // stream that gets the same handle later is another stream. Fine for a stream that was never seen. Errors, and nothing
  // retired: kInvalidArgument for a stream of another device; the upstream's, such as that it is being captured.
  absl::Status RetireStream(Stream stream);

  // Private pools, for graphs: their memory goes to no other pool, and they grow with new memory alone, so that no call is
  // made that a capture forbids. What was freed in one serves its later requests.
  [[nodiscard]] PoolId CreatePool();
  // The graphs that were captured with it are gone: its memory is everybody's as it becomes free, after the device has been
  // synchronised. Its blocks in use stay good. kNotFound if there is no such pool.
  absl::Status ReleasePool(PoolId pool);

  // Called on the requesting thread, no lock held, when the rungs before have failed; in the order of registration until the
  // request fits. `needed` is what is asked for, rounded. Returns whether it freed something. It may use the allocator.
  using OutOfMemoryCallback = std::function<bool(Bytes needed)>;
  // Called after growth, on the thread that caused it, no lock held, each time reserved has come to `fraction` of the cap
  // from below (or of the device's memory, without a cap).
  using NearCapCallback = std::function<void(const Totals&)>;
  using CallbackId = uint64_t;
  CallbackId OnOutOfMemory(OutOfMemoryCallback callback);
  CallbackId OnNearCap(double fraction, NearCapCallback callback);
  // A call that is under way on another thread may still end after this. Unknown ids are fine.
  void RemoveCallback(CallbackId id);

  // Cached memory above a lowered cap is given back at once, which synchronises the device; blocks in use stay, and nothing
  // grows until they are gone.
  void set_cap(Bytes cap);
  [[nodiscard]] Totals totals() const;
  [[nodiscard]] Bytes reserved() const;  // as in totals(); takes no lock
  [[nodiscard]] std::vector<SegmentInfo> segments() const;
  [[nodiscard]] Upstream& upstream() const;
  // To read, and to open and close lineages; charges come from the allocator alone.
  [[nodiscard]] Ledger& ledger();
  [[nodiscard]] const Ledger& ledger() const;
  // The statistics page: the equations of types.h with their figures, then the owners.
  [[nodiscard]] std::string Report() const;
  // The equations and the structure behind them, recomputed; kInternal names what does not hold. Call it while no other
  // thread is inside the allocator: a block between two hands is in none.
  [[nodiscard]] absl::Status CheckInvariants() const;

  // What the library does around each fork(), for every allocator.
  void LockForFork();
  void UnlockAfterFork();
  void ForgetOtherThreads();  // in the child

  // The library's own (allocator_impl.h).
  struct Impl;
  [[nodiscard]] Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace gpuledger
