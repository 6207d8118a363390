// gpuledger/resource.h - device memory for CCCL's containers and algorithms: a cuda::mr resource over CachingAllocator.
//
// MemoryResource satisfies cuda::mr::resource_with<MemoryResource, cuda::mr::device_accessible>, so that whatever takes
// such a resource (cuda::buffer, any_resource, resource_ref, RMM, cuDF) buys its memory through the ledger: each byte is
// charged to the owner and role of the calling thread (owner.h). It is a handle: copies are the same resource.
//
// Header-only, with the user's own CCCL (3.2 or newer, the wheels nvidia-cuda-cccl >= 13.2) and CUDA 13's headers; any
// C++20 compiler, no nvcc. No CUDA library is linked: the driver is found at run time.
//
// Thread-safe. Streams are those of allocator.h: one that is destroyed before the resource is retired first (RetireStream),
// and each thread's per-thread default stream is a stream of its own.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include <cuda/version>
#if CCCL_VERSION < 3002000
#error "gpuledger/resource.h needs CCCL 3.2 or newer, that of CUDA 13.2: put it before the toolkit's on the include path (pip install nvidia-cuda-cccl)"
#endif
#include <cuda/memory_resource>
#include <cuda/stream_ref>

#include "gpuledger/allocator.h"
#include "gpuledger/cuda_upstream.h"
#include "gpuledger/resource_errors.h"

namespace gpuledger {

class MemoryResource {
 public:
  // For code that asks a resource what its memory is (cuda::make_buffer).
  using default_queries = ::cuda::mr::properties_list<::cuda::mr::device_accessible>;
  // Of every address: a request for less gets this.
  static constexpr size_t kAlignment = 512;
  static_assert(Bytes(kAlignment) == SizeClass::kGranule);

  // An allocator of its own over CUDA device `device`. Its streams may vanish (AllocatorOptions::streams_may_vanish), as those
  // of other resources may. Errors: those of CudaUpstream::Open. A sink (null for none)
  // outlives the last copy.
  static absl::StatusOr<MemoryResource> Open(DeviceId device, const AllocatorOptions& options = {},
                                             const CudaOptions& cuda_options = {}, RecordSink* sink = nullptr);
  // An allocator of its own over `upstream`, whose memory a device can read and write.
  explicit MemoryResource(std::unique_ptr<Upstream> upstream, const AllocatorOptions& options = {}, RecordSink* sink = nullptr);
  // Of an allocator that somebody else has too: shared with them, or (second form) only referred to, so that it outlives
  // every copy. Not null.
  explicit MemoryResource(std::shared_ptr<CachingAllocator> allocator);
  explicit MemoryResource(CachingAllocator& allocator);

  // Copies share the allocator, and the last one gives its memory back: everything must have been deallocated by then
  // (fatal otherwise). There is no move: a resource without an allocator does not exist.
  MemoryResource(const MemoryResource&) noexcept = default;
  MemoryResource& operator=(const MemoryResource&) noexcept = default;
  ~MemoryResource() = default;

  // At least `bytes` bytes, usable by work of `stream` ordered after this call; content undefined. Null for 0 bytes.
  // `alignment` is a power of two; up to kAlignment it is free, above it up to `alignment` bytes are charged on top.
  // Throws: OutOfMemoryError with the allocator's report; AllocationError if the driver failed; std::invalid_argument for
  // an alignment that is no power of two. A call that throws has changed no block in use or pending.
  // Synchronises: as CachingAllocator::Allocate, only when memory is short.
  [[nodiscard]] void* allocate(::cuda::stream_ref stream, size_t bytes, size_t alignment = kAlignment) {
    return Take(StreamOf(stream), bytes, alignment).pointer;
  }
  // `stream`: one behind all work that uses the memory. If it is the stream of the allocation, that one can have the memory
  // again at once; else the memory is pending until what `stream` has queued by now is done. `pointer` is from any of these
  // calls of an equal resource, with the same `alignment`. Null is fine; misuse ends the program (AllocatorOptions::on_misuse).
  // Does not synchronise.
  void deallocate(::cuda::stream_ref stream, void* pointer, size_t bytes, size_t alignment = kAlignment) noexcept;

  // The same, usable when the call returns, on any stream. Synchronises the default stream.
  [[nodiscard]] void* allocate_sync(size_t bytes, size_t alignment = kAlignment);
  // No work that uses the memory is queued any more. Synchronises the default stream; where a capture forbids that, the
  // memory is only ordered after it.
  void deallocate_sync(void* pointer, size_t bytes, size_t alignment = kAlignment) noexcept;

  // To be called before `stream` is destroyed. Waits for its work; its memory in use stays good, and what it has cached is
  // everybody's. Errors: the driver's; kFailedPrecondition while it is being captured.
  absl::Status RetireStream(::cuda::stream_ref stream) { return allocator_->RetireStream(StreamOf(stream)); }

  // Whether what one has allocated the other can deallocate.
  friend bool operator==(const MemoryResource& a, const MemoryResource& b) noexcept { return a.allocator_ == b.allocator_; }
  friend void get_property(const MemoryResource&, ::cuda::mr::device_accessible) noexcept {}

  // For reports, limits, and what the concept has no words for.
  [[nodiscard]] CachingAllocator& allocator() const noexcept { return *allocator_; }

 private:
  struct Taken {
    DevicePtr block;
    void* pointer;  // in the block, aligned
  };
  struct Owned {
    Owned(std::unique_ptr<Upstream> its_upstream, AllocatorOptions options, RecordSink* sink)
        : upstream(std::move(its_upstream)), allocator(*upstream, WithStreamsThatVanish(options), sink) {}
    static AllocatorOptions WithStreamsThatVanish(AllocatorOptions options) {
      options.streams_may_vanish = true;
      return options;
    }
    std::unique_ptr<Upstream> upstream;
    CachingAllocator allocator;
  };

  [[nodiscard]] DeviceId device() const { return allocator_->upstream().device(); }
  [[nodiscard]] Stream DefaultStream() const { return Stream::Default(device()); }
  [[nodiscard]] Stream StreamOf(::cuda::stream_ref stream) const { return Stream(device(), stream.get()); }
  [[nodiscard]] Taken Take(Stream stream, size_t bytes, size_t alignment);
  [[nodiscard]] DevicePtr BlockAt(void* pointer, size_t alignment) const;
  void FreeAfter(Stream stream, DevicePtr block) noexcept;

  std::shared_ptr<CachingAllocator> allocator_;
};

static_assert(::cuda::mr::resource_with<MemoryResource, ::cuda::mr::device_accessible>);
static_assert(!::cuda::mr::resource_with<MemoryResource, ::cuda::mr::host_accessible>);

// ---- the rest is how ---------------------------------------------------------------------------------------------------

inline absl::StatusOr<MemoryResource> MemoryResource::Open(DeviceId device, const AllocatorOptions& options,
                                                           const CudaOptions& cuda_options, RecordSink* sink) {
  absl::StatusOr<std::unique_ptr<CudaUpstream>> upstream = CudaUpstream::Open(device, cuda_options);
  if (!upstream.ok()) return upstream.status();
  return MemoryResource(*std::move(upstream), options, sink);
}

inline MemoryResource::MemoryResource(std::unique_ptr<Upstream> upstream, const AllocatorOptions& options, RecordSink* sink) {
  if (upstream == nullptr) Die("MemoryResource: there is no upstream");
  const auto owned = std::make_shared<Owned>(std::move(upstream), options, sink);
  allocator_ = std::shared_ptr<CachingAllocator>(owned, &owned->allocator);
}

inline MemoryResource::MemoryResource(std::shared_ptr<CachingAllocator> allocator) : allocator_(std::move(allocator)) {
  if (allocator_ == nullptr) Die("MemoryResource: there is no allocator");
}

inline MemoryResource::MemoryResource(CachingAllocator& allocator)
    : allocator_(std::shared_ptr<CachingAllocator>(std::shared_ptr<void>(), &allocator)) {}

inline MemoryResource::Taken MemoryResource::Take(Stream stream, size_t bytes, size_t alignment) {
  if (!std::has_single_bit(alignment)) {
    throw std::invalid_argument("gpuledger: an alignment of " + std::to_string(alignment) + " is no power of two");
  }
  const size_t extra = alignment > kAlignment && bytes > 0 ? alignment - kAlignment : 0;
  const size_t wanted = bytes > std::numeric_limits<size_t>::max() - extra ? std::numeric_limits<size_t>::max() : bytes + extra;
  const absl::StatusOr<DevicePtr> block = allocator_->AllocateRaw(Bytes(wanted), stream);
  if (!block.ok()) ThrowAllocationError(block.status());
  const uint64_t aligned = (block->address() + alignment - 1) & ~uint64_t{alignment - 1};
  return {*block, reinterpret_cast<void*>(aligned)};
}

inline DevicePtr MemoryResource::BlockAt(void* pointer, size_t alignment) const {
  const DevicePtr address(device(), reinterpret_cast<uint64_t>(pointer));
  if (alignment <= kAlignment) return address;
  const absl::StatusOr<LiveAllocation> found = allocator_->Find(address);
  return found.ok() ? found->address : address;  // what is not found, Free reports
}

inline void MemoryResource::FreeAfter(Stream stream, DevicePtr block) noexcept {
  allocator_->RecordStream(block, stream).IgnoreError();  // no block in use: Free says so
  allocator_->Free(block);
}

inline void MemoryResource::deallocate(::cuda::stream_ref stream, void* pointer, size_t, size_t alignment) noexcept {
  if (pointer == nullptr) return;
  FreeAfter(StreamOf(stream), BlockAt(pointer, alignment));
}

inline void* MemoryResource::allocate_sync(size_t bytes, size_t alignment) {
  const Taken taken = Take(DefaultStream(), bytes, alignment);
  if (taken.pointer == nullptr) return nullptr;
  if (const absl::Status waited = allocator_->upstream().WaitStream(DefaultStream()); !waited.ok()) {
    allocator_->Free(taken.block);
    ThrowAllocationError(waited);
  }
  return taken.pointer;
}

inline void MemoryResource::deallocate_sync(void* pointer, size_t, size_t alignment) noexcept {
  if (pointer == nullptr) return;
  const DevicePtr block = BlockAt(pointer, alignment);
  if (allocator_->upstream().WaitStream(DefaultStream()).ok()) return allocator_->Free(block);
  FreeAfter(DefaultStream(), block);
}

}  // namespace gpuledger
