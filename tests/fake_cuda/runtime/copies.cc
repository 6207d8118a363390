// Copies and fills; compiled twice (stream_calls.h).
#include "stream_calls.h"
#include "symbols.h"

using namespace fake_cudart;

namespace {

CUdeviceptr Address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

bool IsKind(cudaMemcpyKind kind) { return kind >= cudaMemcpyHostToHost && kind <= cudaMemcpyDefault; }

CUresult Copy(const StreamCalls& calls, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return CUDA_SUCCESS;
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return calls.MemcpyHtoD(Address(to), from, bytes);
    case cudaMemcpyDeviceToHost:
      return calls.MemcpyDtoH(to, Address(from), bytes);
    case cudaMemcpyDeviceToDevice:
      return calls.MemcpyDtoD(Address(to), Address(from), bytes);
    default:
      return calls.Memcpy(Address(to), Address(from), bytes);
  }
}

CUresult CopyAsync(const StreamCalls& calls, void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                   cudaStream_t stream) {
  if (bytes == 0) return CUDA_SUCCESS;
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return calls.MemcpyHtoDAsync(Address(to), from, bytes, stream);
    case cudaMemcpyDeviceToHost:
      return calls.MemcpyDtoHAsync(to, Address(from), bytes, stream);
    case cudaMemcpyDeviceToDevice:
      return calls.MemcpyDtoDAsync(Address(to), Address(from), bytes, stream);
    default:
      return calls.MemcpyAsync(Address(to), Address(from), bytes, stream);
  }
}

CUmemorytype Side(cudaMemcpyKind kind, cudaMemcpyKind host, cudaMemcpyKind device) {
  if (kind == cudaMemcpyDefault) return CU_MEMORYTYPE_UNIFIED;
  return kind == cudaMemcpyHostToHost || kind == host         ? CU_MEMORYTYPE_HOST
         : kind == cudaMemcpyDeviceToDevice || kind == device ? CU_MEMORYTYPE_DEVICE
                                                              : CU_MEMORYTYPE_UNIFIED;
}

CUDA_MEMCPY2D Copy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                     cudaMemcpyKind kind) {
  CUDA_MEMCPY2D copy = {};
  copy.srcMemoryType = Side(kind, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost);
  copy.srcHost = from;
  copy.srcDevice = Address(from);
  copy.srcPitch = from_pitch;
  copy.dstMemoryType = Side(kind, cudaMemcpyDeviceToHost, cudaMemcpyHostToDevice);
  copy.dstHost = to;
  copy.dstDevice = Address(to);
  copy.dstPitch = to_pitch;
  copy.WidthInBytes = width;
  copy.Height = height;
  return copy;
}

}  // namespace

FAKE_CUDART_EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (!IsKind(kind)) return Remember(cudaErrorInvalidMemcpyDirection);
  return WithStreams([&](const StreamCalls& calls) { return Copy(calls, to, from, bytes, kind); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                               cudaStream_t stream) {
  if (!IsKind(kind)) return Remember(cudaErrorInvalidMemcpyDirection);
  return WithStreams([&](const StreamCalls& calls) { return CopyAsync(calls, to, from, bytes, kind, stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                            size_t width, size_t height, cudaMemcpyKind kind) {
  if (!IsKind(kind)) return Remember(cudaErrorInvalidMemcpyDirection);
  const CUDA_MEMCPY2D copy = Copy2D(to, to_pitch, from, from_pitch, width, height, kind);
  return WithStreams([&](const StreamCalls& calls) { return calls.Memcpy2DUnaligned(&copy); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                                 size_t width, size_t height, cudaMemcpyKind kind,
                                                 cudaStream_t stream) {
  if (!IsKind(kind)) return Remember(cudaErrorInvalidMemcpyDirection);
  const CUDA_MEMCPY2D copy = Copy2D(to, to_pitch, from, from_pitch, width, height, kind);
  return WithStreams([&](const StreamCalls& calls) { return calls.Memcpy2DAsync(&copy, stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return WithStreams([&](const StreamCalls& calls) {
    return bytes == 0 ? CUDA_SUCCESS : calls.MemsetD8(Address(pointer), static_cast<unsigned char>(value), bytes);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    return bytes == 0 ? CUDA_SUCCESS
                      : calls.MemsetD8Async(Address(pointer), static_cast<unsigned char>(value), bytes, stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemset2D(void* pointer, size_t pitch, int value, size_t width, size_t height) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.MemsetD2D8(Address(pointer), pitch, static_cast<unsigned char>(value), width, height);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemset2DAsync(void* pointer, size_t pitch, int value, size_t width, size_t height,
                                                 cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.MemsetD2D8Async(Address(pointer), pitch, static_cast<unsigned char>(value), width, height, stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                                                  cudaMemcpyKind kind) {
  char* address = nullptr;
  if (const cudaError_t error = SymbolRange(symbol, offset, bytes, &address)) return Remember(error);
  return cudaMemcpy(address, from, bytes, kind);
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                                    cudaMemcpyKind kind) {
  char* address = nullptr;
  if (const cudaError_t error = SymbolRange(symbol, offset, bytes, &address)) return Remember(error);
  return cudaMemcpy(to, address, bytes, kind);
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes,
                                                       size_t offset, cudaMemcpyKind kind, cudaStream_t stream) {
  char* address = nullptr;
  if (const cudaError_t error = SymbolRange(symbol, offset, bytes, &address)) return Remember(error);
  return cudaMemcpyAsync(address, from, bytes, kind, stream);
}

FAKE_CUDART_EXPORT cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset,
                                                         cudaMemcpyKind kind, cudaStream_t stream) {
  char* address = nullptr;
  if (const cudaError_t error = SymbolRange(symbol, offset, bytes, &address)) return Remember(error);
  return cudaMemcpyAsync(to, address, bytes, kind, stream);
}
