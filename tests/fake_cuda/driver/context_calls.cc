// Contexts: primary ones, others, and each thread's stack of them.
#include <fmt/format.h>

#include <algorithm>

#include "capture.h"
#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

constexpr unsigned kScheduleFlags = CU_CTX_FLAGS_MASK;

Context* NewContext(Device& device, unsigned flags) {
  auto context = std::make_unique<Context>();
  context->device = &device;
  context->id = driver().next_id++;
  context->flags = flags;
  context->active = true;
  return driver().contexts.Add(std::move(context));
}

CUresult Create(CUcontext* out, unsigned flags, CUdevice ordinal) {
  Device* const device = FindDevice(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (out == nullptr || (flags & ~kScheduleFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  Context* const context = NewContext(*device, flags);
  ContextStack().push_back(context);
  *out = reinterpret_cast<CUcontext>(context);
  return CUDA_SUCCESS;
}

// `handle`, or the current context if it is null.
Context* ContextOr(CUcontext handle, CUresult& result) {
  if (handle == nullptr) return CurrentContext(result);
  Context* const context = driver().contexts.Find(handle);
  if (context == nullptr) {
    result = driver().contexts.Died(handle)
                 ? Misuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context was destroyed before")
                 : CUDA_ERROR_INVALID_CONTEXT;
  }
  return context;
}

template <typename Use>
CUresult WithContext(CUcontext handle, Use use) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = ContextOr(handle, result);
  return context == nullptr ? result : use(*context);
}

CUresult Synchronise(Context& context) {
  if (const CUresult refused = RefuseWaiting(context); refused != CUDA_SUCCESS) return refused;
  return WaitForAll(&context);
}

size_t DefaultLimit(CUlimit limit) {
  switch (limit) {
    case CU_LIMIT_STACK_SIZE:
      return 1024;
    case CU_LIMIT_PRINTF_FIFO_SIZE:
      return 7 << 20;
    case CU_LIMIT_MALLOC_HEAP_SIZE:
      return 8 << 20;
    case CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH:
      return 2;
    case CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT:
      return 2048;
    case CU_LIMIT_MAX_L2_FETCH_GRANULARITY:
      return 64;
    default:
      return 0;
  }
}

}  // namespace

CUresult cuDevicePrimaryCtxRetain(CUcontext* pctx, CUdevice dev) {
  Device* const device = FindDevice(dev);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (pctx == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device->primary == nullptr) {
    device->primary = NewContext(*device, 0);
    device->primary->primary = true;
  }
  device->primary->active = true;
  ++device->primary->retained;
  *pctx = reinterpret_cast<CUcontext>(device->primary);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
  Device* const device = FindDevice(dev);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (device->primary == nullptr || device->primary->retained == 0) {
    return Misuse(CUDA_ERROR_INVALID_CONTEXT, fmt::format("the primary context of device {} is not retained", dev));
  }
  if (--device->primary->retained == 0 && device->primary->active) {
    TearDown(*device->primary, "cuDevicePrimaryCtxRelease");
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) { return fake_cuda::cuDevicePrimaryCtxRelease_v2(dev); }

// Those who retained it still have to release it.
CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
  Device* const device = FindDevice(dev);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (device->primary != nullptr && device->primary->active) TearDown(*device->primary, "cuDevicePrimaryCtxReset");
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset(CUdevice dev) { return fake_cuda::cuDevicePrimaryCtxReset_v2(dev); }

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned flags) {
  Device* const device = FindDevice(dev);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if ((flags & ~kScheduleFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (device->primary == nullptr) {
    device->primary = NewContext(*device, flags);
    device->primary->primary = true;
    device->primary->active = false;
  }
  device->primary->flags = flags;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned flags) {
  return fake_cuda::cuDevicePrimaryCtxSetFlags_v2(dev, flags);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned* flags, int* active) {
  Device* const device = FindDevice(dev);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *flags = device->primary != nullptr ? device->primary->flags : 0;
  *active = device->primary != nullptr && device->primary->active ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxCreate_v2(CUcontext* pctx, unsigned flags, CUdevice dev) { return Create(pctx, flags, dev); }

CUresult cuCtxCreate_v3(CUcontext* pctx, CUexecAffinityParam*, int count, unsigned flags, CUdevice dev) {
  return count != 0 ? CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY : Create(pctx, flags, dev);
}

CUresult cuCtxCreate_v4(CUcontext* pctx, CUctxCreateParams* params, unsigned flags, CUdevice dev) {
  if (params != nullptr && params->numExecAffinityParams != 0) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  return Create(pctx, flags, dev);
}

CUresult cuCtxDestroy_v2(CUcontext ctx) {
  return WithContext(ctx, [&](Context& context) {
    if (ctx == nullptr || context.primary) return CUDA_ERROR_INVALID_CONTEXT;
    TearDown(context, "cuCtxDestroy");
    std::vector<Context*>& stack = ContextStack();
    if (!stack.empty() && stack.back() == &context) stack.pop_back();
    driver().contexts.Remove(&context);
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxDestroy(CUcontext ctx) { return fake_cuda::cuCtxDestroy_v2(ctx); }

CUresult cuCtxPushCurrent_v2(CUcontext ctx) {
  return WithContext(ctx, [&](Context& context) {
    ContextStack().push_back(&context);
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxPushCurrent(CUcontext ctx) { return fake_cuda::cuCtxPushCurrent_v2(ctx); }

CUresult cuCtxPopCurrent_v2(CUcontext* pctx) {
  std::vector<Context*>& stack = ContextStack();
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (pctx != nullptr) *pctx = reinterpret_cast<CUcontext>(stack.back());
  stack.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* pctx) { return fake_cuda::cuCtxPopCurrent_v2(pctx); }

CUresult cuCtxSetCurrent(CUcontext ctx) {
  std::vector<Context*>& stack = ContextStack();
  if (ctx == nullptr) {
    if (!stack.empty()) stack.pop_back();
    return CUDA_SUCCESS;
  }
  return WithContext(ctx, [&](Context& context) {
    if (stack.empty()) stack.push_back(nullptr);
    stack.back() = &context;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxGetCurrent(CUcontext* pctx) {
  if (pctx == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *pctx = ContextStack().empty() ? nullptr : reinterpret_cast<CUcontext>(ContextStack().back());
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext ctx) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(ctx, [&](Context& context) { return *device = context.device->ordinal, CUDA_SUCCESS; });
}

CUresult cuCtxGetDevice(CUdevice* device) { return fake_cuda::cuCtxGetDevice_v2(device, nullptr); }

CUresult cuCtxGetFlags(unsigned* flags) {
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) { return *flags = context.flags, CUDA_SUCCESS; });
}

CUresult cuCtxSetFlags(unsigned flags) {
  if ((flags & ~kScheduleFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) { return context.flags = flags, CUDA_SUCCESS; });
}

CUresult cuCtxGetId(CUcontext ctx, unsigned long long* id) {
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(ctx, [&](Context& context) { return *id = context.id, CUDA_SUCCESS; });
}

CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(ctx, [&](Context&) { return *version = 3020, CUDA_SUCCESS; });
}

CUresult cuCtxSynchronize_v2(CUcontext ctx) { return WithContext(ctx, Synchronise); }
CUresult cuCtxSynchronize() { return WithContext(nullptr, Synchronise); }

CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  if (limit < 0 || limit >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) { return context.limits[limit] = value, CUDA_SUCCESS; });
}

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  if (value == nullptr || limit < 0 || limit >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) {
    const auto found = context.limits.find(limit);
    *value = found != context.limits.end() ? found->second : DefaultLimit(limit);
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxGetCacheConfig(CUfunc_cache* config) {
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) { return *config = context.cache_config, CUDA_SUCCESS; });
}

CUresult cuCtxSetCacheConfig(CUfunc_cache config) {
  return WithContext(nullptr, [&](Context& context) { return context.cache_config = config, CUDA_SUCCESS; });
}

CUresult cuCtxGetSharedMemConfig(CUsharedconfig* config) {
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) { return *config = context.shared_config, CUDA_SUCCESS; });
}

CUresult cuCtxSetSharedMemConfig(CUsharedconfig config) {
  return WithContext(nullptr, [&](Context& context) { return context.shared_config = config, CUDA_SUCCESS; });
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return WithContext(nullptr, [&](Context&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxResetPersistingL2Cache() {
  return WithContext(nullptr, [](Context&) { return CUDA_SUCCESS; });
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
  if (flags != 0 || peer == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithContext(nullptr, [&](Context& context) {
    return WithContext(peer, [&](Context& other) {
      if (other.device == context.device) return CUDA_ERROR_INVALID_DEVICE;
      if (!driver().options.peers) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
      return context.peers.insert(&other).second ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    });
  });
}

CUresult cuCtxDisablePeerAccess(CUcontext peer) {
  return WithContext(nullptr, [&](Context& context) {
    return WithContext(peer, [&](Context& other) {
      return context.peers.erase(&other) != 0 ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    });
  });
}

}  // namespace fake_cuda
