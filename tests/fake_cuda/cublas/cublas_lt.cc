// libcublasLt.so.13: descriptions are made and dropped, one algorithm is found for every product, and running it
// computes nothing.
#include <cublasLt.h>

#include <new>

#include "do_nothing.h"
#include "symbol.h"

namespace fake_cublas {

int Unsupported(const fake_cuda::Symbol& symbol) { return DoNothing(symbol); }

namespace {

template <typename T>
cublasStatus_t Make(T** object) {
  if (object == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *object = new T();
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
cublasStatus_t Drop(T* object) {
  delete object;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t Accept(const void* object, const void* value) {
  return object != nullptr && value != nullptr ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

}  // namespace
}  // namespace fake_cublas

using namespace fake_cublas;

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *handle = static_cast<cublasLtHandle_t>(::operator new(1));
  return CUBLAS_STATUS_SUCCESS;
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  ::operator delete(handle);
  return CUBLAS_STATUS_SUCCESS;
}

FAKE_CUBLAS_EXPORT size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
FAKE_CUBLAS_EXPORT size_t cublasLtGetCudartVersion() { return CUDART_VERSION; }
FAKE_CUBLAS_EXPORT const char* cublasLtGetStatusName(cublasStatus_t status) { return StatusName(status); }
FAKE_CUBLAS_EXPORT const char* cublasLtGetStatusString(cublasStatus_t status) { return StatusName(status); }
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtGetProperty(libraryPropertyType type, int* value) {
  return Property(type, value, {CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUBLAS_VER_PATCH});
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t,
                                                           cudaDataType_t) {
  return Make(description);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  return Drop(description);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                                                 cublasLtMatmulDescAttributes_t, const void* value,
                                                                 size_t) {
  return Accept(description, value);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType, uint64_t,
                                                             uint64_t, int64_t) {
  return Make(layout);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return Drop(layout); }
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                                   cublasLtMatrixLayoutAttribute_t, const void* value,
                                                                   size_t) {
  return Accept(layout, value);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Make(preference);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return Drop(preference);
}
FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                                       cublasLtMatmulPreferenceAttributes_t,
                                                                       const void* value, size_t) {
  return Accept(preference, value);
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                                                 cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                                 cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                                 cublasLtMatmulPreference_t, int wanted,
                                                                 cublasLtMatmulHeuristicResult_t results[],
                                                                 int* found) {
  if (wanted < 1 || results == nullptr || found == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  results[0] = {};
  results[0].state = CUBLAS_STATUS_SUCCESS;
  results[0].wavesCount = 1;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

FAKE_CUBLAS_EXPORT cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*,
                                                 cublasLtMatrixLayout_t, const void*, cublasLtMatrixLayout_t,
                                                 const void*, const void*, cublasLtMatrixLayout_t, void*,
                                                 cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*, void*, size_t,
                                                 cudaStream_t) {
  return CUBLAS_STATUS_SUCCESS;
}
