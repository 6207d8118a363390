/* gpuledger_torch.h - the LibTorch part of gpuledger for C, ctypes and other languages.
 *
 * Every function returns a gpuledger_torch_status unless it says otherwise, never throws, and leaves a sentence for
 * gpuledger_last_error() (gpuledger.h) when it fails. Callers from Python hold the GIL throughout (ctypes.PyDLL): freeing a
 * storage and counting references both touch Python objects. Semantics: gpuledger/torch.h. */
#ifndef GPULEDGER_GPULEDGER_TORCH_H_
#define GPULEDGER_GPULEDGER_TORCH_H_

#include <stdint.h>

#ifdef __cplusplus
#define GPULEDGER_TORCH_NOEXCEPT noexcept
extern "C" {
#else
#define GPULEDGER_TORCH_NOEXCEPT
#endif
#define GPULEDGER_TORCH_API __attribute__((visibility("default")))

typedef enum {
  GPULEDGER_TORCH_OK = 0,
  GPULEDGER_TORCH_INTERNAL = 1,
  GPULEDGER_TORCH_INVALID_ARGUMENT = 2,
  GPULEDGER_TORCH_SHARED = 3,   /* someone else holds the storage */
  GPULEDGER_TORCH_NOT_OURS = 4, /* bytes that cannot be freed through a tensor */
  GPULEDGER_TORCH_OUT_OF_MEMORY = 5
} gpuledger_torch_status;

typedef enum {
  GPULEDGER_TORCH_REFUSE = 0,
  GPULEDGER_TORCH_POISON = 1,
  GPULEDGER_TORCH_REPORT = 2
} gpuledger_torch_policy;

/* HolderCounts and ConsumeReport of gpuledger/torch.h. */
typedef struct {
  uint64_t tensor_handles;
  uint64_t aliases;
  uint64_t python_references;
  uint64_t python_storages;
  uint64_t bytes;
  uint64_t charged;
  uint64_t remaining;
  int32_t freed;
  int32_t freeable; /* 0: policy report met bytes that cannot be freed through a tensor */
} gpuledger_torch_report;

/* The LibTorch this was built for, such as "2.11". */
GPULEDGER_TORCH_API const char* gpuledger_torch_built_for(void) GPULEDGER_TORCH_NOEXCEPT;

/* From now on the functions of gpuledger_pluggable.h throw c10::OutOfMemoryError (torch.OutOfMemoryError) and c10::Error. */
GPULEDGER_TORCH_API void gpuledger_torch_throw_torch_errors(void) GPULEDGER_TORCH_NOEXCEPT;

GPULEDGER_TORCH_API int gpuledger_torch_install_cpu(void) GPULEDGER_TORCH_NOEXCEPT;
GPULEDGER_TORCH_API int gpuledger_torch_uninstall_cpu(void) GPULEDGER_TORCH_NOEXCEPT;
/* 1 or 0, not a status. */
GPULEDGER_TORCH_API int gpuledger_torch_cpu_installed(void) GPULEDGER_TORCH_NOEXCEPT;

/* `tensor_impl` is tensor._cdata. `own_python_references`: references to the tensor object that are the caller's. */
GPULEDGER_TORCH_API int gpuledger_torch_inspect(void* tensor_impl, uint64_t own_python_references,
                                                gpuledger_torch_report* report) GPULEDGER_TORCH_NOEXCEPT;
/* Where a tensor's storage lies and what it has of it, without touching either: a copy-on-write storage stays shared, one
 * that was consumed is at 0. `covered` is the bytes of the storage that the tensor's elements are, each counted once.
 * INVALID_ARGUMENT for a tensor without storage. */
typedef struct {
  uint64_t address, bytes, covered;
} gpuledger_torch_place;
GPULEDGER_TORCH_API int gpuledger_torch_locate(void* tensor_impl, gpuledger_torch_place* place) GPULEDGER_TORCH_NOEXCEPT;
/* The same of a storage: storage._cdata. */
GPULEDGER_TORCH_API int gpuledger_torch_locate_storage(void* storage_impl, gpuledger_torch_place* place) GPULEDGER_TORCH_NOEXCEPT;

/* Consume. The tensor object stays, and raises the weight's name when it is read after its bytes were freed. `report`
 * is filled in as far as it is known, also on failure. */
GPULEDGER_TORCH_API int gpuledger_torch_consume(void* tensor_impl, const char* weight, int policy,
                                                uint64_t own_python_references, gpuledger_torch_report* report)
    GPULEDGER_TORCH_NOEXCEPT;

/* --- Owners without work --- */

/* From now on threads of PyTorch that work for another thread (the backward pass of a GPU) pay as that one does, unless they are
 * in a scope of their own. For good; a second call changes nothing. */
GPULEDGER_TORCH_API int gpuledger_torch_carry_payers(void) GPULEDGER_TORCH_NOEXCEPT;
/* gpuledger_process_transfer for the block that is the tensor's storage, if it is not `owner`'s as `role` yet. `address` (may be
 * NULL): where the block is, 0 if the storage is none of the ledger's. */
GPULEDGER_TORCH_API int gpuledger_torch_adopt(void* tensor_impl, const char* owner, int role, uint64_t* address) GPULEDGER_TORCH_NOEXCEPT;
/* Names the workspaces that PyTorch keeps for libraries: owners cublas/workspace and cublaslt/workspace, role scratch. */
GPULEDGER_TORCH_API int gpuledger_torch_name_workspaces(void) GPULEDGER_TORCH_NOEXCEPT;
/* A module's number, not a status. `path` is its owner: "model/layers.3". */
GPULEDGER_TORCH_API uint32_t gpuledger_torch_module(const char* path) GPULEDGER_TORCH_NOEXCEPT;
/* The forward pass of the calling thread enters and leaves a module, which pays for what is allocated in between, role activation,
 * and for what the backward pass of the same operations allocates on a thread without a scope, role gradient. Entries that were made
 * deeper in the thread's stack than this call were left without a word: they end. Leaving ends the module's innermost entry and those
 * inside it; none is fine. */
GPULEDGER_TORCH_API int gpuledger_torch_enter_module(uint32_t module) GPULEDGER_TORCH_NOEXCEPT;
GPULEDGER_TORCH_API int gpuledger_torch_leave_module(uint32_t module) GPULEDGER_TORCH_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif /* GPULEDGER_GPULEDGER_TORCH_H_ */
