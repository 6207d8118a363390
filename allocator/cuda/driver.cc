#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <mutex>

#include <fmt/format.h>

#include "sync.h"

namespace gpuledger::cuda {
namespace {

using GetProcAddress = Result (*)(const char*, void**, int, uint64_t, int*);
using GetProcAddressV1 = Result (*)(const char*, void**, int, uint64_t);

constexpr std::string_view kTooOld =
    "this library needs a driver for CUDA 11.3 or newer (465 or newer): update the NVIDIA driver";

std::atomic<uint32_t> fork_generation{0};

// Looks names up in libcuda.so.1, by whichever form of cuGetProcAddress it has.
class Lookup {
 public:
  explicit Lookup(void* library)
      : current_(reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"))),
        first_(reinterpret_cast<GetProcAddressV1>(dlsym(library, "cuGetProcAddress"))) {}

  [[nodiscard]] bool usable() const { return current_ != nullptr || first_ != nullptr; }

  // Null if the driver does not have it.
  void* Find(const char* name, int version) const {
    void* found = nullptr;
    int status = 0;
    const Result result = current_ != nullptr ? current_(name, &found, version, kProcAddressLegacyStream, &status)
                                              : first_(name, &found, version, kProcAddressLegacyStream);
    return result == kSuccess ? found : nullptr;
  }

 private:
  const GetProcAddress current_;
  const GetProcAddressV1 first_;
};

absl::Status Resolve(Driver& driver) {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NODELETE);
  if (library == nullptr) {
    const char* const why = dlerror();
    return absl::UnavailableError(fmt::format(
        "no CUDA driver: {}; install the NVIDIA driver, or, in a container, start it with its GPUs (--gpus all)",
        why != nullptr ? why : "libcuda.so.1 cannot be loaded"));
  }
  const Lookup lookup(library);
  if (!lookup.usable()) {
    return absl::UnavailableError(fmt::format("libcuda.so.1 has no cuGetProcAddress; {}", kTooOld));
  }
  std::string missing;
#define GPULEDGER_CUDA_FIND(name, version, parameters) \
  driver.name = reinterpret_cast<Result(*) parameters>(lookup.Find(#name, version));
#define GPULEDGER_CUDA_REQUIRE(name, version, parameters) \
  GPULEDGER_CUDA_FIND(name, version, parameters)          \
  if (driver.name == nullptr) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", #name);
  GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_CUDA_REQUIRE)
  GPULEDGER_CUDA_OPTIONAL_FUNCTIONS(GPULEDGER_CUDA_FIND)
#undef GPULEDGER_CUDA_REQUIRE
#undef GPULEDGER_CUDA_FIND
  if (missing.empty()) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("libcuda.so.1 does not have {}; {}", missing, kTooOld));
}

absl::Status Initialise(Driver& driver) {
  if (absl::Status status = Resolve(driver); !status.ok()) return status;
  const Result result = driver.cuInit(0);
  // A child of a process that had initialised CUDA, with our help or without, is told so.
  if (result == kNotInitialized) return ForkedChild("CudaUpstream::Open");
  if (result == kSuccess) {
    driver.cuDriverGetVersion(&driver.version);
    driver.generation = ForkGeneration();
    return absl::OkStatus();
  }
  const absl::Status status = CudaStatus(driver, result, "cuInit", "CudaUpstream::Open");
  return absl::UnavailableError(status.message());
}

}  // namespace

absl::StatusOr<const Driver*> LoadDriver() {
  static Mutex& mutex = *new Mutex;  // leaked on purpose, as is the driver: used until the process is gone
  static std::atomic<const Driver*> loaded{nullptr};
  if (const Driver* driver = loaded.load(std::memory_order_acquire)) {
    if (driver->generation != ForkGeneration()) return ForkedChild("CudaUpstream::Open");
    return driver;
  }
  static std::once_flag watch_forks;
  std::call_once(watch_forks, [] {
    pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
  });
  MutexLock lock(mutex);
  if (const Driver* driver = loaded.load(std::memory_order_acquire)) return driver;
  Driver fresh;
  if (absl::Status status = Initialise(fresh); !status.ok()) return status;
  loaded.store(new Driver(fresh), std::memory_order_release);
  return loaded.load(std::memory_order_acquire);
}

uint32_t ForkGeneration() { return fork_generation.load(std::memory_order_relaxed); }

absl::Status ForkedChild(std::string_view what) {
  return absl::FailedPreconditionError(fmt::format(
      "{}: this process was forked from one that had initialised CUDA, and CUDA works only in the process that "
      "initialised it; start workers with spawn instead of fork (Python: multiprocessing.get_context('spawn')), or "
      "fork before the first use of CUDA",
      what));
}

}  // namespace gpuledger::cuda
