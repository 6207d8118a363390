// Streams and events as objects: made, asked, destroyed.
#include "state.h"

using namespace fake_cudart;

FAKE_CUDART_EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.StreamCreate(stream, CU_STREAM_DEFAULT)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.StreamCreate(stream, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.StreamCreateWithPriority(stream, flags, priority)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.StreamDestroy(stream)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(driver.ThreadExchangeStreamCaptureMode(reinterpret_cast<CUstreamCaptureMode*>(mode)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.EventCreate(event, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

FAKE_CUDART_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.EventDestroy(event)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.EventQuery(event)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.EventSynchronize(event)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.EventElapsedTime(milliseconds, start, end)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t event) {
  static_assert(sizeof(cudaIpcEventHandle_t) == sizeof(CUipcEventHandle));
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.IpcGetEventHandle(reinterpret_cast<CUipcEventHandle*>(handle), event));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t handle) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.IpcOpenEventHandle(event, reinterpret_cast<const CUipcEventHandle&>(handle)));
  });
}
