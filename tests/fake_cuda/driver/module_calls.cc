// Modules, libraries, and what is known of their kernels.
#include <cstring>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "module.h"

namespace fake_cuda {
namespace {

constexpr int kRegisters = 32;

template <typename Handle>
CUresult Load(Handle* out, const void* image, Context* context) {
  if (out == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto module = std::make_unique<Module>();
  module->context = context;
  *out = reinterpret_cast<Handle>(driver().modules.Add(std::move(module)));
  return CUDA_SUCCESS;
}

CUresult LoadHere(CUmodule* out, const void* image) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  return context == nullptr ? result : Load(out, image, context);
}

template <typename Use>
CUresult WithModule(const void* handle, Use use) {
  Module* const module = driver().modules.Find(handle);
  if (module != nullptr) return use(*module);
  if (!driver().modules.Died(handle)) return CUDA_ERROR_INVALID_HANDLE;
  return Misuse(CUDA_ERROR_INVALID_HANDLE, "the module was unloaded before, or its context was reset");
}

template <typename Use>
CUresult WithFunction(const void* handle, Use use) {
  Function* const function = driver().functions.Find(handle);
  return function == nullptr ? CUDA_ERROR_INVALID_HANDLE : use(*function);
}

CUresult Unload(const void* handle) {
  return WithModule(handle, [](Module& module) {
    for (const auto& [name, function] : module.functions) driver().functions.Remove(function);
    return driver().modules.Remove(&module), CUDA_SUCCESS;
  });
}

template <typename Handle>
CUresult Get(Handle* out, const void* module_handle, const char* name) {
  if (out == nullptr || name == nullptr || *name == '\0') return CUDA_ERROR_INVALID_VALUE;
  return WithModule(module_handle, [&](Module& module) {
    Function*& function = module.functions[name];
    if (function == nullptr) {
      function = driver().functions.Add(std::make_unique<Function>(Function{module.context, &module, name, {}}));
    }
    return *out = reinterpret_cast<Handle>(function), CUDA_SUCCESS;
  });
}

CUresult GetAttribute(int* value, CUfunction_attribute attribute, const void* handle) {
  if (value == nullptr || attribute < 0 || attribute >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
  return WithFunction(handle, [&](Function& function) {
    const auto found = function.attributes.find(attribute);
    *value = 0;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) *value = 1024;
    if (attribute == CU_FUNC_ATTRIBUTE_NUM_REGS) *value = kRegisters;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) *value = 49152;
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) *value = -1;
    if (attribute == CU_FUNC_ATTRIBUTE_PTX_VERSION || attribute == CU_FUNC_ATTRIBUTE_BINARY_VERSION) {
      *value = driver().options.major * 10 + driver().options.minor;
    }
    if (found != function.attributes.end()) *value = found->second;
    return CUDA_SUCCESS;
  });
}

CUresult SetAttribute(CUfunction_attribute attribute, int value, const void* handle) {
  if (attribute < 0 || attribute >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
  return WithFunction(handle, [&](Function& function) { return function.attributes[attribute] = value, CUDA_SUCCESS; });
}

CUresult GetName(const char** name, const void* handle) {
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithFunction(handle, [&](Function& function) { return *name = function.name.c_str(), CUDA_SUCCESS; });
}

CUresult Known(const void* function) {
  return WithFunction(function, [](Function&) { return CUDA_SUCCESS; });
}

}  // namespace

CUresult cuModuleLoad(CUmodule* module, const char* path) { return LoadHere(module, path); }
CUresult cuModuleLoadData(CUmodule* module, const void* image) { return LoadHere(module, image); }
CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return LoadHere(module, image);
}
CUresult cuModuleLoadFatBinary(CUmodule* module, const void* image) { return LoadHere(module, image); }
CUresult cuModuleUnload(CUmodule module) { return Unload(module); }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  return Get(function, module, name);
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, CUmodule handle, const char*) {
  return WithModule(handle, [](Module&) { return CUDA_ERROR_NOT_FOUND; });
}

CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  if (mode == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return *mode = CU_MODULE_LAZY_LOADING, CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned, CUlibraryOption*,
                           void**, unsigned) {
  return Load(library, image, nullptr);
}
CUresult cuLibraryLoadFromFile(CUlibrary* library, const char* path, CUjit_option*, void**, unsigned, CUlibraryOption*,
                               void**, unsigned) {
  return Load(library, path, nullptr);
}
CUresult cuLibraryUnload(CUlibrary library) { return Unload(library); }
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  return Get(kernel, library, name);
}

CUresult cuLibraryGetModule(CUmodule* module, CUlibrary library) {
  if (module == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithModule(library, [&](Module& found) { return *module = reinterpret_cast<CUmodule>(&found), CUDA_SUCCESS; });
}

CUresult cuLibraryGetGlobal(CUdeviceptr*, size_t*, CUlibrary library, const char*) {
  return WithModule(library, [](Module&) { return CUDA_ERROR_NOT_FOUND; });
}

CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *function = reinterpret_cast<CUfunction>(kernel);
  return Known(kernel);
}

CUresult cuKernelGetLibrary(CUlibrary* library, CUkernel kernel) {
  if (library == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithFunction(
      kernel, [&](Function& found) { return *library = reinterpret_cast<CUlibrary>(found.module), CUDA_SUCCESS; });
}

CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel, CUdevice) {
  return GetAttribute(value, attribute, kernel);
}
CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice) {
  return SetAttribute(attribute, value, kernel);
}
CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache, CUdevice) { return Known(kernel); }
CUresult cuKernelGetName(const char** name, CUkernel kernel) { return GetName(name, kernel); }

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  return GetAttribute(value, attribute, function);
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  return SetAttribute(attribute, value, function);
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache) { return Known(function); }
CUresult cuFuncSetSharedMemConfig(CUfunction function, CUsharedconfig) { return Known(function); }
CUresult cuFuncLoad(CUfunction function) { return Known(function); }
CUresult cuFuncGetName(const char** name, CUfunction function) { return GetName(name, function); }

CUresult cuFuncGetModule(CUmodule* module, CUfunction function) {
  if (module == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithFunction(
      function, [&](Function& found) { return *module = reinterpret_cast<CUmodule>(found.module), CUDA_SUCCESS; });
}

CUresult cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction function) {
  if (state == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return *state = CU_FUNCTION_LOADING_STATE_LOADED, Known(function);
}

}  // namespace fake_cuda
