#include "state.h"

#include <array>
#include <mutex>

namespace fake_cudart {
namespace {

constexpr int kMaxDevices = 64;

// `resets` counts: a thread whose binding is older than the last reset binds anew.
struct PrimaryContext {
  std::mutex mutex;
  CUcontext context = nullptr;
  unsigned resets = 0;
};

// Never destroyed: programs call CUDA from their own destructors.
std::array<PrimaryContext, kMaxDevices>& PrimaryContexts() {
  static auto* const contexts = new std::array<PrimaryContext, kMaxDevices>;
  return *contexts;
}

struct ThreadState {
  cudaError_t last_error = cudaSuccess;
  int device = 0;
  CUcontext bound = nullptr;  // the context that this runtime made current
  unsigned resets = 0;        // of its device, when it did
};

ThreadState& State() {
  thread_local ThreadState state;
  return state;
}

// With its lock held.
cudaError_t Retain(const Driver& driver, int device, PrimaryContext* primary) {
  if (primary->context != nullptr) return cudaSuccess;
  CUcontext context = nullptr;
  if (const CUresult result = driver.DevicePrimaryCtxRetain(&context, device)) return FromDriver(result);
  primary->context = context;
  return cudaSuccess;
}

cudaError_t BindPrimaryContext(const Driver& driver, int device) {
  PrimaryContext& primary = PrimaryContexts()[device];
  std::lock_guard<std::mutex> lock(primary.mutex);
  if (const cudaError_t error = Retain(driver, device, &primary)) return error;
  if (const CUresult result = driver.CtxSetCurrent(primary.context)) return FromDriver(result);
  ThreadState& state = State();
  state.device = device;
  state.bound = primary.context;
  state.resets = primary.resets;
  return cudaSuccess;
}

// Whether another thread has reset the device since this thread's context was made current.
bool IsStale(const ThreadState& state, CUcontext current) {
  if (current != state.bound) return false;
  PrimaryContext& primary = PrimaryContexts()[state.device];
  std::lock_guard<std::mutex> lock(primary.mutex);
  return primary.resets != state.resets;
}

}  // namespace

cudaError_t Remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) State().last_error = error;
  return error;
}

cudaError_t LastError() { return State().last_error; }

cudaError_t TakeLastError() {
  const cudaError_t error = State().last_error;
  State().last_error = cudaSuccess;
  return error;
}

cudaError_t StartDriver(const Driver** driver) {
  *driver = LoadDriver();
  if (*driver == nullptr) return cudaErrorInsufficientDriver;
  static const CUresult started = (*driver)->Init(0);
  return FromDriver(started);
}

cudaError_t EnterContext(const Driver& driver) {
  const ThreadState& state = State();
  CUcontext current = nullptr;
  if (const CUresult result = driver.CtxGetCurrent(&current)) return FromDriver(result);
  if (current != nullptr && !IsStale(state, current)) return cudaSuccess;
  return BindPrimaryContext(driver, state.device);
}

cudaError_t CurrentDevice(const Driver& driver, int* device) {
  CUcontext current = nullptr;
  if (const CUresult result = driver.CtxGetCurrent(&current)) return FromDriver(result);
  if (current == nullptr || current == State().bound) {
    *device = State().device;
    return cudaSuccess;
  }
  return FromDriver(driver.CtxGetDevice(device));
}

cudaError_t CheckDevice(const Driver& driver, int device) {
  int count = 0;
  if (const CUresult result = driver.DeviceGetCount(&count)) return FromDriver(result);
  return device >= 0 && device < count && device < kMaxDevices ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t SetDevice(const Driver& driver, int device) {
  if (const cudaError_t error = CheckDevice(driver, device)) return error;
  return BindPrimaryContext(driver, device);
}

cudaError_t PrimaryContextOf(const Driver& driver, int device, CUcontext* context) {
  if (const cudaError_t error = CheckDevice(driver, device)) return error;
  PrimaryContext& primary = PrimaryContexts()[device];
  std::lock_guard<std::mutex> lock(primary.mutex);
  const cudaError_t error = Retain(driver, device, &primary);
  *context = primary.context;
  return error;
}

cudaError_t ResetDevice(const Driver& driver) {
  int device = 0;
  if (const cudaError_t error = CurrentDevice(driver, &device)) return error;
  PrimaryContext& primary = PrimaryContexts()[device];
  std::lock_guard<std::mutex> lock(primary.mutex);
  if (const CUresult result = driver.DevicePrimaryCtxReset(device)) return FromDriver(result);
  primary.context = nullptr;
  ++primary.resets;
  State().bound = nullptr;
  return FromDriver(driver.CtxSetCurrent(nullptr));
}

}  // namespace fake_cudart
