// The caching allocator under c10's CPU allocator.
#include <pthread.h>

#include <mutex>
#include <string>

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include "carried_payer.h"
#include "gpuledger/host_upstream.h"
#include "gpuledger/torch.h"
#include "holders.h"

namespace gpuledger::pytorch {
namespace {

// Above c10's own (0), so that a later registration of a default does not push ours out.
constexpr uint8_t kPriority = 1;

void Free(void* block);

class LedgerCpuAllocator final : public c10::Allocator {
 public:
  explicit LedgerCpuAllocator(CachingAllocator& core)
      : core_(core), stream_(Stream::Default(core.upstream().device())) {}

  c10::DataPtr allocate(size_t size) override {
    const c10::Device kCpu(c10::DeviceType::CPU);
    if (size == 0) return {nullptr, nullptr, &Free, kCpu};
    const absl::StatusOr<DevicePtr> block = core_.AllocateRaw(Bytes(size), stream_, CurrentSite());
    if (!block.ok()) Fail(size, block.status());
    void* const data = block->unsafe_host_pointer();
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, data, &Free, kCpu};  // context == data: raw_deleter() frees what raw_allocate() gave
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }

  void Return(void* block) {
    c10::profiledCPUMemoryReporter().Delete(block);
    core_.Free(DevicePtr(stream_.device(), reinterpret_cast<uint64_t>(block)));
  }

 private:
  [[noreturn, gnu::cold]] static void Fail(size_t size, const absl::Status& status) {
    c10::profiledCPUMemoryReporter().OutOfMemory(size);
    const std::string message = "gpuledger: " + std::string(status.message());
    if (status.code() == absl::StatusCode::kResourceExhausted) C10_THROW_ERROR(OutOfMemoryError, message);
    C10_THROW_ERROR(Error, message);
  }

  CachingAllocator& core_;
  const Stream stream_;
};

// Never destroyed: tensors may be freed after main().
struct State {
  explicit State(const AllocatorOptions& options) : core(upstream, options), shim(core) {}
  HostAnonymousUpstream upstream;
  CachingAllocator core;
  LedgerCpuAllocator shim;
  c10::Allocator* before = nullptr;  // what install replaced
};
State* state = nullptr;  // set once, under the lock
std::mutex& Lock() {
  static auto* const lock = new std::mutex;
  return *lock;
}

void Free(void* block) {
  if (block != nullptr) state->shim.Return(block);
}

void BeforeFork() {
  Lock().lock();
  LockWatchesForFork();  // the core locks its allocators by itself
}
void AfterFork() {
  UnlockWatchesAfterFork();
  Lock().unlock();
}

absl::Status Install(const AllocatorOptions& options) {
  // From Python this is called with the GIL, and allocations are made without it: what takes call stacks gets to know the
  // interpreter here.
  static_cast<void>(CurrentSite());
  CarryPayers();
  const std::lock_guard guard(Lock());
  if (state == nullptr) {
    state = new State(options);
    if (pthread_atfork(BeforeFork, AfterFork, AfterFork) != 0) {
      return absl::ResourceExhaustedError("InstallCpuAllocator: no memory for a fork handler");
    }
  }
  c10::Allocator* const current = c10::GetCPUAllocator();
  if (current == &state->shim) return absl::OkStatus();
  c10::SetCPUAllocator(&state->shim, kPriority);
  if (c10::GetCPUAllocator() != &state->shim) {
    return absl::FailedPreconditionError(
        "InstallCpuAllocator: another CPU allocator was installed with a higher priority; install gpuledger's first");
  }
  state->before = current;
  return absl::OkStatus();
}

}  // namespace

absl::Status InstallCpuAllocator() {
  const absl::StatusOr<AllocatorOptions> options = AllocatorOptions::FromEnvironment();
  if (!options.ok()) return options.status();
  return Install(*options);
}

absl::Status InstallCpuAllocator(const AllocatorOptions& options) { return Install(options); }

void UninstallCpuAllocator() {
  const std::lock_guard guard(Lock());
  if (state != nullptr && c10::GetCPUAllocator() == &state->shim) c10::SetCPUAllocator(state->before, kPriority);
}

bool CpuAllocatorInstalled() {
  const std::lock_guard guard(Lock());
  return state != nullptr && c10::GetCPUAllocator() == &state->shim;
}

CachingAllocator* CpuAllocator() {
  const std::lock_guard guard(Lock());
  return state == nullptr ? nullptr : &state->core;
}

}  // namespace gpuledger::pytorch
