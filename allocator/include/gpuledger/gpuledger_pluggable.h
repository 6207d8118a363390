/* gpuledger/gpuledger_pluggable.h - the functions for PyTorch's CUDAPluggableAllocator: the way in for any PyTorch from 2.1 on.
 *
 * One caching allocator for each device, opened with the GPULEDGER_ options when the device is first used, and kept until the
 * process ends. Nothing of LibTorch is needed: PyTorch takes these functions by address
 * (torch._C._cuda_customAllocator and its set_ methods; gpuledger._pluggable does it). Streams that memory was asked for live
 * until the process ends, as PyTorch's own do; one that does not (torch.cuda.ExternalStream) must not be destroyed by then.
 *
 * Unlike all other C functions of this library these throw, since PyTorch takes a null pointer for a tensor: what the thrower
 * throws, or std::runtime_error. Thread-safe. */
#ifndef GPULEDGER_GPULEDGER_PLUGGABLE_H_
#define GPULEDGER_GPULEDGER_PLUGGABLE_H_

#include <stddef.h>

#include "gpuledger/gpuledger.h"

#ifdef __cplusplus
#include <functional>
#include <utility>

extern "C" {
#endif

struct CUstream_st; /* what a cudaStream_t points to */

/* Whether the options in the environment are right, before PyTorch is given these functions. Python calls it with the GIL: what
 * takes call stacks gets to know the interpreter here. Opens no device. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_torch_prepare_pluggable(void) GPULEDGER_NOEXCEPT;

/* What throws in place of these functions: it does not return. `out_of_memory`: 1 if memory ran out; the message, in PyTorch's
 * words and then ours, is the out-of-memory report. NULL: std::runtime_error. For a library that knows c10::OutOfMemoryError. */
typedef void (*gpuledger_torch_thrower)(int out_of_memory, const char* message);
GPULEDGER_C_EXPORT void gpuledger_torch_set_thrower(gpuledger_torch_thrower thrower) GPULEDGER_NOEXCEPT;

/* Memory for work of `stream`; 512 B aligned; NULL for 0 bytes. From a private pool if one is being filled by that stream.
 * Owner and call stack are taken before any lock. Synchronises the device only where CachingAllocator::Allocate does. */
GPULEDGER_C_EXPORT void* gpuledger_torch_malloc(size_t size, int device, struct CUstream_st* stream);
/* Never throws, waits for nothing. An address that was not handed out here is left alone, with a sentence on stderr; a block
 * freed twice is misuse (GPULEDGER_ON_MISUSE). `size` and `stream` are the allocator's own to know, and not read. */
GPULEDGER_C_EXPORT void gpuledger_torch_free(void* address, size_t size, int device, struct CUstream_st* stream);

/* The eight hooks, by PyTorch's names for their setters. */
/* set_init_fn. Devices are opened when they are first used. */
GPULEDGER_C_EXPORT void gpuledger_torch_init(int device_count);
/* set_reset_fn, torch.cuda.empty_cache: gives cached memory back, on all devices. Synchronises them. */
GPULEDGER_C_EXPORT void gpuledger_torch_empty_cache(void);
/* set_memory_fraction_fn: reserved stays within this part of the device's memory, and within GPULEDGER_CAP. */
GPULEDGER_C_EXPORT void gpuledger_torch_memory_fraction(double fraction, int device);
/* set_base_alloc_fn: the start of the block that holds the address, and its size; the address itself, and 0, for memory of
 * someone else. */
GPULEDGER_C_EXPORT void* gpuledger_torch_base_allocation(void* address, size_t* size);
/* set_record_stream_fn: work of `stream` uses the block. Memory of someone else is left to it. */
GPULEDGER_C_EXPORT void gpuledger_torch_record_stream(void* address, struct CUstream_st* stream);
#ifdef __cplusplus
/* set_begin_allocate_to_pool: from now on memory for those streams that `uses` is true of comes from the private pool, which is
 * made if it is new, and used once more. `uses` is not called after end. Throws if the pool is being filled already. */
GPULEDGER_C_EXPORT void gpuledger_torch_begin_allocate_to_pool(int device, std::pair<unsigned long long, unsigned long long> pool,
                                                               std::function<bool(CUstream_st*)> uses);
/* set_end_allocate_to_pool_fn. Never throws: a pool that is not being filled is a sentence on stderr. */
GPULEDGER_C_EXPORT void gpuledger_torch_end_allocate_to_pool(int device, std::pair<unsigned long long, unsigned long long> pool);
/* set_release_pool: used once less; the last use gives its memory to everybody, which synchronises the device. Never throws. */
GPULEDGER_C_EXPORT void gpuledger_torch_release_pool(int device, std::pair<unsigned long long, unsigned long long> pool);

} /* extern "C" */
#endif

#endif /* GPULEDGER_GPULEDGER_PLUGGABLE_H_ */
