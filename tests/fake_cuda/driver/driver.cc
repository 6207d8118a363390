#include "driver.h"

#include <unistd.h>

#include <fmt/format.h>

#include "capture.h"
#include "entry.h"
#include "misuse.h"
#include "module.h"
#include "pool.h"
#include "stream.h"

namespace fake_cuda {

Driver& driver() {
  static Driver* const instance = new Driver;
  return *instance;
}

Device* FindDevice(int ordinal) {
  const auto& devices = driver().devices;
  return ordinal >= 0 && size_t(ordinal) < devices.size() ? devices[size_t(ordinal)].get() : nullptr;
}

std::vector<Context*>& ContextStack() {
  // That of the main thread outlives its thread-local objects: programs call CUDA in the destructors of statics.
  static std::vector<Context*>& of_main_thread = *new std::vector<Context*>;
  thread_local std::vector<Context*> of_thread;
  thread_local const bool is_main_thread = gettid() == getpid();
  return is_main_thread ? of_main_thread : of_thread;
}

Context* CurrentContext(CUresult& result) {
  const std::vector<Context*>& stack = ContextStack();
  if (stack.empty() || stack.back() == nullptr) {
    result = CUDA_ERROR_INVALID_CONTEXT;
    return nullptr;
  }
  Context* const context = driver().contexts.Find(stack.back());
  if (context == nullptr) {
    result = Misuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context that is current was destroyed");
    return nullptr;
  }
  if (!context->active) {
    result =
        Misuse(CUDA_ERROR_CONTEXT_IS_DESTROYED,
               fmt::format("the primary context of device {} was reset or released; cuDevicePrimaryCtxRetain makes "
                           "it anew",
                           context->device->ordinal));
    return nullptr;
  }
  return context;
}

void TearDown(Context& context, const char* by) {
  Driver& state = driver();
  context.active = false;
  const auto captures = state.captures;
  for (const std::shared_ptr<Capture>& capture : captures) {
    if (capture->origin->context == &context) Abandon(*capture);
  }
  // Stream-ordered and mapped memory belongs to no context, and outlives it.
  std::vector<Address> owned;
  for (auto& [address, allocation] : state.allocations.all()) {
    if (allocation.context != &context) continue;
    if (allocation.family == Family::kPool || allocation.family == Family::kGraph) {
      allocation.context = nullptr;
    } else {
      owned.push_back(address);
    }
  }
  for (const Address address : owned) FreeAllocation(*state.allocations.At(address), by);

  const auto remove_all = [&](auto& handles) {
    std::vector<std::remove_reference_t<decltype(*handles.Find(nullptr))>*> gone;
    for (const auto& [handle, object] : handles.live()) {
      if (object->context == &context) gone.push_back(object.get());
    }
    for (auto* const object : gone) handles.Remove(object);
  };
  remove_all(state.streams);
  remove_all(state.events);
  remove_all(state.modules);
  remove_all(state.functions);
  context.legacy = nullptr;
  context.per_thread.clear();
  context.peers.clear();
  context.limits.clear();
}

CUresult WaitForAll(Context* context) {
  std::vector<const void*> handles;  // waiting may let others in, who make and destroy streams
  for (const auto& [handle, stream] : driver().streams.live()) {
    if (context == nullptr || stream->context == context) handles.push_back(handle);
  }
  for (const void* const handle : handles) {
    Stream* const stream = driver().streams.Find(handle);
    if (stream == nullptr) continue;
    if (const CUresult result = Synchronize(*stream); result != CUDA_SUCCESS) return result;
  }
  if (context != nullptr) TrimPools(*context->device);
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
