#include "symbols.h"

#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fake_cudart {
namespace {

struct Module {
  const void* image;
  CUlibrary library = nullptr;
  bool gone = false;  // its library was closed; its kernels keep pointing here
};

struct Kernel {
  Module* module;
  const char* name;
  CUkernel kernel = nullptr;
};

struct Variable {
  size_t size = 0;
  std::map<int, CUdeviceptr> addresses;  // by device
};

class Registry {
 public:
  static Registry& Get() {
    static auto* const registry = new Registry;  // never destroyed: libraries unregister at exit
    return *registry;
  }

  Module* AddModule(const void* image) { return new Module{image}; }

  // A program may hold a hundred thousand kernels and launch none: they are only noted until the first look-up.
  void AddKernel(Module* module, const void* host_function, const char* name) {
    std::lock_guard<std::mutex> lock(mutex_);
    noted_.push_back({host_function, {module, name}});
  }

  void AddVariable(const void* host_variable, size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    variables_[host_variable].size = size;
  }

  // At exit every library unregisters its modules, one after the other: its kernels are struck out, not searched for.
  void RemoveModule(Module* module) {
    std::lock_guard<std::mutex> lock(mutex_);
    module->gone = true;
  }

  cudaError_t Find(const Driver& driver, const void* host_function, CUkernel* result) {
    std::lock_guard<std::mutex> lock(mutex_);
    Index();
    const auto found = kernels_.find(host_function);
    if (found == kernels_.end() || found->second.module->gone) return cudaErrorInvalidDeviceFunction;
    Kernel& kernel = found->second;
    if (kernel.kernel == nullptr) {
      CUlibrary& library = kernel.module->library;
      if (library == nullptr) {
        const CUresult loaded =
            driver.LibraryLoadData(&library, kernel.module->image, nullptr, nullptr, 0, nullptr, nullptr, 0);
        if (loaded != CUDA_SUCCESS) return FromDriver(loaded);
      }
      if (const CUresult got = driver.LibraryGetKernel(&kernel.kernel, library, kernel.name)) return FromDriver(got);
    }
    *result = kernel.kernel;
    return cudaSuccess;
  }

  cudaError_t Locate(const Driver& driver, const void* host_variable, int device, Variable* result) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = variables_.find(host_variable);
    if (found == variables_.end()) return cudaErrorInvalidSymbol;
    Variable& variable = found->second;
    if (!variable.addresses.contains(device)) {
      CUdeviceptr address = 0;
      if (const CUresult result_of_alloc = driver.MemAlloc(&address, variable.size)) return FromDriver(result_of_alloc);
      variable.addresses[device] = address;
    }
    *result = variable;
    return cudaSuccess;
  }

  cudaError_t Size(const void* host_variable, size_t* size) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = variables_.find(host_variable);
    if (found == variables_.end()) return cudaErrorInvalidSymbol;
    *size = found->second.size;
    return cudaSuccess;
  }

  void ForgetMemory(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [unused, variable] : variables_) variable.addresses.erase(device);
  }

 private:
  void Index() {
    kernels_.reserve(kernels_.size() + noted_.size());
    for (const auto& [host_function, kernel] : noted_) kernels_[host_function] = kernel;
    noted_.clear();
    noted_.shrink_to_fit();
  }

  std::mutex mutex_;
  std::vector<std::pair<const void*, Kernel>> noted_;
  std::unordered_map<const void*, Kernel> kernels_;
  std::unordered_map<const void*, Variable> variables_;
};

}  // namespace

cudaError_t FindKernel(const Driver& driver, const void* host_function, CUkernel* kernel) {
  return Registry::Get().Find(driver, host_function, kernel);
}

cudaError_t SymbolRange(const void* host_variable, size_t offset, size_t size, char** address) {
  return WithContext([&](const Driver& driver) {
    int device = 0;
    if (const cudaError_t error = CurrentDevice(driver, &device)) return error;
    Variable variable;
    if (const cudaError_t error = Registry::Get().Locate(driver, host_variable, device, &variable)) return error;
    if (offset > variable.size || size > variable.size - offset) return cudaErrorInvalidValue;
    *address = reinterpret_cast<char*>(variable.addresses.at(device)) + offset;
    return cudaSuccess;
  });
}

cudaError_t SymbolSize(const void* host_variable, size_t* size) { return Registry::Get().Size(host_variable, size); }

void ForgetSymbolMemory(int device) { Registry::Get().ForgetMemory(device); }

}  // namespace fake_cudart

using namespace fake_cudart;

// What nvcc's host code calls, as declared in crt/host_runtime.h.
FAKE_CUDART_EXPORT void** __cudaRegisterFatBinary(void* image) {
  return reinterpret_cast<void**>(Registry::Get().AddModule(image));
}

FAKE_CUDART_EXPORT void __cudaRegisterFatBinaryEnd(void**) {}

FAKE_CUDART_EXPORT void __cudaUnregisterFatBinary(void** handle) {
  Registry::Get().RemoveModule(reinterpret_cast<Module*>(handle));
}

FAKE_CUDART_EXPORT char __cudaInitModule(void**) { return 1; }

FAKE_CUDART_EXPORT void __cudaRegisterFunction(void** handle, const char* host_function, char*, const char* name, int,
                                               uint3*, uint3*, dim3*, dim3*, int*) {
  Registry::Get().AddKernel(reinterpret_cast<Module*>(handle), host_function, name);
}

FAKE_CUDART_EXPORT void __cudaRegisterVar(void**, char* host_variable, char*, const char*, int, size_t size, int, int) {
  Registry::Get().AddVariable(host_variable, size);
}

FAKE_CUDART_EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  char* found = nullptr;
  const cudaError_t error = SymbolRange(symbol, 0, 0, &found);
  if (error == cudaSuccess) *address = found;
  return error;
}

FAKE_CUDART_EXPORT cudaError_t cudaGetSymbolSize(size_t* size, const void* symbol) {
  return Remember(SymbolSize(symbol, size));
}
