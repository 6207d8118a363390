// The hot path on CUDA streams beside PyTorch's own caching allocator, in one program: the same workloads, the same streams.
//
// Ours runs over the CUDA upstream and writes every record in full. PyTorch's runs without recording ("torch"), and with its
// history on but without stacks ("torch_history"). With --install=libgpuledger_torch_cuda.so ours is put under PyTorch instead, and
// the same calls of PyTorch's are measured ("gpuledger_in_torch"). On whatever libcuda.so.1 and libcudart.so.13 the loader finds: a real
// device, or the fake one. bench/hot_path.py starts it so that it finds them.
#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "gpuledger/allocator.h"
#include "gpuledger/cuda_upstream.h"
#include "pairs.h"
#include "ring_sink.h"
#include "threads.h"
#include "usage.h"

// In no header of PyTorch's: libtorch_cuda, which is not needed here, calls it.
namespace c10::cuda::_internal {
C10_CUDA_API void setHasPrimaryContext(bool (*has)(DeviceIndex));
}

namespace gpuledger {
namespace {

namespace torch_allocator = c10::cuda::CUDACachingAllocator;

// The stream of a thread, out of PyTorch's pool; the same for every source.
cudaStream_t StreamOf(int thread) {
  static const auto& streams = *[] {
    c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });  // what libtorch_cuda would answer
    torch_allocator::init(c10::cuda::device_count());
    auto* made = new std::vector<cudaStream_t>;
    while (made->size() < 32) made->push_back(c10::cuda::getStreamFromPool(false, 0).stream());
    return made;
  }();
  return streams.at(static_cast<size_t>(thread));
}

CudaUpstream& Cuda() {
  static auto& upstream = *[] {
    StreamOf(0);  // PyTorch makes the context, as in its programs
    absl::StatusOr<std::unique_ptr<CudaUpstream>> opened = CudaUpstream::Open(DeviceId(0));
    if (!opened.ok()) Die(opened.status().ToString());
    return opened->release();
  }();
  return upstream;
}

class Gpuledger {
 public:
  class Lane {
   public:
    Lane(Gpuledger& source, int thread)
        : allocator_(source.allocator_), stream_(DeviceId(0), StreamOf(thread)),
          scope_("bench/thread" + std::to_string(thread), Role::kActivation) {}
    uint64_t Allocate(uint64_t size) {
      const absl::StatusOr<DevicePtr> block = allocator_.AllocateRaw(Bytes(size), stream_, site_);
      if (!block.ok()) Die(block.status().ToString());
      return block->address();
    }
    void Free(uint64_t block, uint64_t) { allocator_.Free(DevicePtr(DeviceId(0), block)); }

   private:
    CachingAllocator& allocator_;
    const Stream stream_;
    const OwnerScope scope_;
    const SiteId site_ = SiteHere();
  };

  void Ask() { benchmark::DoNotOptimize(allocator_.ledger().usage(owner_)); }

 private:
  RingSink sink_;
  CachingAllocator allocator_{Cuda(), AllocatorOptions{}, &sink_};
  OwnerId owner_ = InternOwner("bench/thread0");
};

template <bool kHistory>
class Torch {
 public:
  Torch() {
    StreamOf(0);
    if constexpr (kHistory) Record(true);
  }
  ~Torch() {
    if constexpr (kHistory) Record(false);
    torch_allocator::emptyCache();  // the next one starts as empty as this one did
  }
  Torch(const Torch&) = delete;
  Torch& operator=(const Torch&) = delete;

  class Lane {
   public:
    Lane(Torch&, int thread) : stream_(StreamOf(thread)) {}
    void* Allocate(uint64_t size) { return torch_allocator::raw_alloc_with_stream(size, stream_); }
    void Free(void* block, uint64_t) { torch_allocator::raw_delete(block); }

   private:
    const cudaStream_t stream_;
  };

  // What torch.cuda.memory_allocated() asks, before Python makes a dictionary of it.
  void Ask() { benchmark::DoNotOptimize(torch_allocator::getDeviceStats(0)); }

 private:
  static void Record(bool on) {
    torch_allocator::recordHistory(on, nullptr, 4096, torch_allocator::RecordContext::NEVER, true, {});
  }
};

// Before anything of CUDA is used.
void Install(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) Die(dlerror());
  const auto install = reinterpret_cast<int (*)()>(dlsym(library, "gpuledger_torch_cuda_install"));
  if (install == nullptr || install() != 0) Die(std::string(path) + ": it could not be put under PyTorch");
}

std::string DeviceName() {
  StreamOf(0);
  char name[256] = "unknown";
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  const auto get_name = driver == nullptr ? nullptr : reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
  if (get_name != nullptr) get_name(name, sizeof name, 0);
  return name;
}

}  // namespace
}  // namespace gpuledger

int main(int argc, char** argv) {
  using namespace gpuledger;
  const auto add = [](auto* source, const std::string& name) {
    using Source = std::remove_pointer_t<decltype(source)>;
    RegisterPairs<Source>(name);
    RegisterThreads<Source>(name);
  };
  benchmark::Initialize(&argc, argv);
  const std::string_view last = argc > 1 ? argv[argc - 1] : "";
  if (constexpr std::string_view kInstall = "--install="; last.substr(0, kInstall.size()) == kInstall) {
    Install(argv[--argc] + kInstall.size());
    add(static_cast<Torch<false>*>(nullptr), "gpuledger_in_torch");
    RegisterUsage<Torch<false>>("gpuledger_in_torch");
  } else {
    add(static_cast<Gpuledger*>(nullptr), "gpuledger");
    add(static_cast<Torch<false>*>(nullptr), "torch");
    add(static_cast<Torch<true>*>(nullptr), "torch_history");
    RegisterUsage<Gpuledger>("gpuledger");
    RegisterUsage<Torch<false>>("torch");
  }
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("device", DeviceName());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
