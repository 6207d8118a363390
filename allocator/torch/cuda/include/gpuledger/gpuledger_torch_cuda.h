/* gpuledger_torch_cuda.h - PyTorch's CUDA memory in the ledger, for C, ctypes and other languages.
 *
 * The library is for one minor version of PyTorch, with CUDA (gpuledger_torch_cuda_built_for); for others there is
 * gpuledger_pluggable.h. Functions return a gpuledger_status (gpuledger.h), never throw, and leave a sentence for
 * gpuledger_last_error() when they fail. Called from Python with the GIL held. The library must not be loaded into another
 * PyTorch than its own: the file has the text "gpuledger_torch_cuda built for PyTorch 2.11" in it, ended by a 0, by which
 * that can be told before. */
#ifndef GPULEDGER_GPULEDGER_TORCH_CUDA_H_
#define GPULEDGER_GPULEDGER_TORCH_CUDA_H_

#ifdef __cplusplus
#define GPULEDGER_TORCH_CUDA_NOEXCEPT noexcept
extern "C" {
#else
#define GPULEDGER_TORCH_CUDA_NOEXCEPT
#endif
#define GPULEDGER_TORCH_CUDA_API __attribute__((visibility("default")))

/* The PyTorch it was built for, such as "2.11". */
GPULEDGER_TORCH_CUDA_API const char* gpuledger_torch_cuda_built_for(void) GPULEDGER_TORCH_CUDA_NOEXCEPT;

/* Puts gpuledger's allocator under every CUDA tensor. Before anything has used CUDA: FAILED_PRECONDITION otherwise, since
 * blocks that were given out keep their allocator. A second call changes nothing. There is no way back. No device is opened
 * before memory on it is asked for; what cannot be opened then is PyTorch's error to raise. */
GPULEDGER_TORCH_CUDA_API int gpuledger_torch_cuda_install(void) GPULEDGER_TORCH_CUDA_NOEXCEPT;

/* Watches PyTorch's own allocator instead, from now on; what is alive is taken over as `unattributed`. Once CUDA is initialised,
 * and where nothing has replaced that allocator: FAILED_PRECONDITION otherwise. A second call changes nothing. */
GPULEDGER_TORCH_CUDA_API int gpuledger_torch_cuda_observe(void) GPULEDGER_TORCH_CUDA_NOEXCEPT;

/* Which of the ways in is in place. */
typedef enum { GPULEDGER_TORCH_CUDA_NONE = 0, GPULEDGER_TORCH_CUDA_ALLOCATOR = 1, GPULEDGER_TORCH_CUDA_OBSERVE = 2 } gpuledger_torch_cuda_way_in;
GPULEDGER_TORCH_CUDA_API int gpuledger_torch_cuda_way(void) GPULEDGER_TORCH_CUDA_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif /* GPULEDGER_GPULEDGER_TORCH_CUDA_H_ */
