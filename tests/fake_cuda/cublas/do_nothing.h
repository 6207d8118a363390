// What both libraries share.
#ifndef GPULEDGER_TESTS_FAKE_CUDA_CUBLAS_DO_NOTHING_H_
#define GPULEDGER_TESTS_FAKE_CUDA_CUBLAS_DO_NOTHING_H_

#include <cublas_api.h>
#include <library_types.h>

#include <array>
#include <cstring>

#include "symbol.h"

#define FAKE_CUBLAS_EXPORT extern "C" __attribute__((visibility("default")))

namespace fake_cublas {

// For every symbol that the tables do not call "own": a computation succeeds without computing, anything else fails.
inline int DoNothing(const fake_cuda::Symbol& symbol) {
  return std::strcmp(symbol.family, "compute") == 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

inline cublasStatus_t Property(libraryPropertyType type, int* value, std::array<int, 3> version) {
  if (value == nullptr || type < MAJOR_VERSION || type > PATCH_LEVEL) return CUBLAS_STATUS_INVALID_VALUE;
  *value = version[type];
  return CUBLAS_STATUS_SUCCESS;
}

inline const char* StatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "a status that the do-nothing cuBLAS does not give";
  }
}

}  // namespace fake_cublas

#endif  // GPULEDGER_TESTS_FAKE_CUDA_CUBLAS_DO_NOTHING_H_
