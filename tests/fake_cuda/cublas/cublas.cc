// libcublas.so.13 of which every computation succeeds and computes nothing. Handles keep what is set in them; what
// would have to return data (vectors, matrices, device counts) is "not supported".
#include <cublas_api.h>

#include "do_nothing.h"
#include "symbol.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
  cublasPointerMode_t pointer_mode = CUBLAS_POINTER_MODE_HOST;
  cublasAtomicsMode_t atomics_mode = CUBLAS_ATOMICS_NOT_ALLOWED;
  cublasMath_t math_mode = CUBLAS_DEFAULT_MATH;
  int sm_count_target = 0;
  void* workspace = nullptr;
  size_t workspace_size = 0;
};

namespace fake_cublas {

int Unsupported(const fake_cuda::Symbol& symbol) { return DoNothing(symbol); }

namespace {

template <typename T>
cublasStatus_t Set(cublasHandle_t handle, T cublasContext::*field, T value) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->*field = value;
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
cublasStatus_t Get(cublasHandle_t handle, T cublasContext::*field, T* value) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (value == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *value = handle->*field;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace fake_cublas

using namespace fake_cublas;

FAKE_CUBLAS_EXPORT cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int* version) {
  if (version == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *version = CUBLAS_VERSION;
  return CUBLAS_STATUS_SUCCESS;
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetProperty(libraryPropertyType type, int* value) {
  return Property(type, value, {CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUBLAS_VER_PATCH});
}

FAKE_CUBLAS_EXPORT size_t cublasGetCudartVersion() { return CUDART_VERSION; }
FAKE_CUBLAS_EXPORT const char* cublasGetStatusName(cublasStatus_t status) { return StatusName(status); }
FAKE_CUBLAS_EXPORT const char* cublasGetStatusString(cublasStatus_t status) { return StatusName(status); }

FAKE_CUBLAS_EXPORT cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t size) {
  const cublasStatus_t status = Set(handle, &cublasContext::workspace, workspace);
  return status != CUBLAS_STATUS_SUCCESS ? status : Set(handle, &cublasContext::workspace_size, size);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  return Set(handle, &cublasContext::stream, stream);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t* stream) {
  return Get(handle, &cublasContext::stream, stream);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
  return Set(handle, &cublasContext::pointer_mode, mode);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t* mode) {
  return Get(handle, &cublasContext::pointer_mode, mode);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasSetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t mode) {
  return Set(handle, &cublasContext::atomics_mode, mode);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t* mode) {
  return Get(handle, &cublasContext::atomics_mode, mode);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  return Set(handle, &cublasContext::math_mode, mode);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t* mode) {
  return Get(handle, &cublasContext::math_mode, mode);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasSetSmCountTarget(cublasHandle_t handle, int count) {
  return Set(handle, &cublasContext::sm_count_target, count);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasGetSmCountTarget(cublasHandle_t handle, int* count) {
  return Get(handle, &cublasContext::sm_count_target, count);
}
