// What the runtime knows besides the driver: a device and a last error per thread, and one primary context per device,
// made current when a thread first needs one.
//
// Every exported function is one body inside WithDriver or WithContext, which set up what the body needs and remember
// its error. Answers of the driver are handed on as they are: since CUDA 10.1 both libraries number them alike.
#ifndef GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_STATE_H_
#define GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_STATE_H_

#include <cuda_runtime_api.h>

#include "driver.h"

// The library hides what it does not export.
#define FAKE_CUDART_EXPORT extern "C" __attribute__((visibility("default")))

namespace fake_cudart {

inline cudaError_t FromDriver(CUresult result) { return static_cast<cudaError_t>(result); }

// Makes `error` the thread's last error, unless it says that all is well or that work is not finished yet.
cudaError_t Remember(cudaError_t error);
// The last error; and the same, after which there is none.
cudaError_t LastError();
cudaError_t TakeLastError();

// Loads and initializes the driver, once.
cudaError_t StartDriver(const Driver** driver);
// After StartDriver: makes the context of the thread's device current, unless the program has made another current.
cudaError_t EnterContext(const Driver& driver);
// The device whose context is current, else the one chosen by SetDevice, else 0. Creates no context.
cudaError_t CurrentDevice(const Driver& driver, int* device);
// As cudaSetDevice: creates the device's context if there is none yet.
cudaError_t SetDevice(const Driver& driver, int device);
// The device's primary context, created if there is none yet; the current context stays what it is.
cudaError_t PrimaryContextOf(const Driver& driver, int device, CUcontext* context);
// As cudaDeviceReset.
cudaError_t ResetDevice(const Driver& driver);
// cudaErrorInvalidDevice if there is no such device.
cudaError_t CheckDevice(const Driver& driver, int device);

// `body` takes the driver and returns a cudaError_t.
template <typename Body>
cudaError_t WithDriver(Body body) {
  const Driver* driver = nullptr;
  if (const cudaError_t error = StartDriver(&driver)) return Remember(error);
  return Remember(body(*driver));
}

template <typename Body>
cudaError_t WithContext(Body body) {
  return WithDriver([&](const Driver& driver) {
    if (const cudaError_t error = EnterContext(driver)) return error;
    return cudaError_t{body(driver)};
  });
}

}  // namespace fake_cudart

#endif  // GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_STATE_H_
