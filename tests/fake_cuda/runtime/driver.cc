#include "driver.h"

#include <dlfcn.h>

#include <type_traits>

namespace fake_cudart {
namespace {

// A version of the table is right if its type is that of the newest form; ::cuMemAlloc is a macro for that form's name.
#define FAKE_CUDART_CHECK(name, version) \
  static_assert(std::is_same_v<decltype(&::cu##name), PFN_cu##name##_v##version>);
#define FAKE_CUDART_CHECK_STREAM(name, version, per_thread_version, ending) \
  FAKE_CUDART_CHECK(name, version)                                          \
  static_assert(std::is_same_v<decltype(&::cu##name), PFN_cu##name##_v##per_thread_version##ending>);
FAKE_CUDART_DRIVER_CALLS(FAKE_CUDART_CHECK)
FAKE_CUDART_STREAM_CALLS(FAKE_CUDART_CHECK_STREAM)
#undef FAKE_CUDART_CHECK
#undef FAKE_CUDART_CHECK_STREAM

// Stands in for a call that the driver lacks, whatever its arguments.
template <typename Function>
struct Missing;
template <typename... Arguments>
struct Missing<CUresult(CUDAAPI*)(Arguments...)> {
  static CUresult CUDAAPI Call(Arguments...) { return CUDA_ERROR_NOT_SUPPORTED; }
};

class Resolver {
 public:
  explicit Resolver(PFN_cuGetProcAddress_v12000 get) : get_(get) {}

  template <typename Function>
  void Resolve(Function* function, const char* name, int version, cuuint64_t flags) {
    void* found = nullptr;
    if (get_(name, &found, version, flags, nullptr) == CUDA_SUCCESS && found != nullptr) {
      *function = reinterpret_cast<Function>(found);
    } else {
      *function = &Missing<Function>::Call;
    }
  }

 private:
  PFN_cuGetProcAddress_v12000 get_;
};

const Driver* Load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) return nullptr;
  const auto exported = reinterpret_cast<PFN_cuGetProcAddress_v12000>(dlsym(library, "cuGetProcAddress_v2"));
  if (exported == nullptr) return nullptr;

  auto* driver = new Driver;  // never freed: programs call CUDA until the very end
  // Only this look-up goes through the exported function, so that a substitute found by it serves all others.
  Resolver(exported).Resolve(&driver->GetProcAddress, "cuGetProcAddress", 12000, CU_GET_PROC_ADDRESS_DEFAULT);
  Resolver through(driver->GetProcAddress);
#define FAKE_CUDART_RESOLVE(name, version) \
  through.Resolve(&driver->name, "cu" #name, version, CU_GET_PROC_ADDRESS_DEFAULT);
#define FAKE_CUDART_RESOLVE_STREAM(name, version, per_thread_version, ending)              \
  through.Resolve(&driver->legacy.name, "cu" #name, version, CU_GET_PROC_ADDRESS_DEFAULT); \
  through.Resolve(&driver->per_thread.name, "cu" #name, per_thread_version,                \
                  CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
  FAKE_CUDART_DRIVER_CALLS(FAKE_CUDART_RESOLVE)
  FAKE_CUDART_STREAM_CALLS(FAKE_CUDART_RESOLVE_STREAM)
#undef FAKE_CUDART_RESOLVE
#undef FAKE_CUDART_RESOLVE_STREAM
  return driver;
}

}  // namespace

const Driver* LoadDriver() {
  static const Driver* const driver = Load();
  return driver;
}

}  // namespace fake_cudart
