// The C boundary, and putting the allocator in its place.
#include <cstdio>
#include <atomic>

#include <fmt/format.h>

#include "allocator_2_11.h"
#include "gpuledger/c_status.h"
#include "gpuledger/gpuledger_torch_cuda.h"
#include "observe.h"
#include "requests.h"

namespace gpuledger::pytorch {
namespace {

std::atomic<int> way_in = GPULEDGER_TORCH_CUDA_NONE;

// Whole in the file, so that the version can be read without loading it (gpuledger_torch_cuda.h).
constexpr char kBuiltFor[] = "gpuledger_torch_cuda built for PyTorch " GPULEDGER_BUILT_FOR_TORCH;
constexpr size_t kVersion = sizeof kBuiltFor - sizeof GPULEDGER_BUILT_FOR_TORCH;

absl::Status Install() {
  namespace pytorch_allocator = c10::cuda::CUDACachingAllocator;
  if (way_in == GPULEDGER_TORCH_CUDA_ALLOCATOR) return absl::OkStatus();
  pytorch_allocator::CUDAAllocator* const current = pytorch_allocator::get();
  if (current == nullptr) return absl::UnavailableError("this PyTorch has no CUDA allocator that could be replaced");
  if (current->initialized()) {
    return absl::FailedPreconditionError(
        "CUDA has been used already, and blocks that were given out keep their allocator: install gpuledger before the first use of "
        "CUDA, or set GPULEDGER_TORCH=allocator for the whole program");
  }
  fmt::print(stderr, "{}", UnhonouredSettings());
  Allocator211& ours = Allocator211::Get();
  pytorch_allocator::allocator.store(&ours);
  c10::SetAllocator(c10::DeviceType::CUDA, &ours, 1);  // above PyTorch's own: torch.accelerator asks there
  way_in = GPULEDGER_TORCH_CUDA_ALLOCATOR;
  return absl::OkStatus();
}

absl::Status Observe() {
  const absl::Status status = ObserveCuda();
  if (status.ok()) way_in = GPULEDGER_TORCH_CUDA_OBSERVE;
  return status;
}

}  // namespace
}  // namespace gpuledger::pytorch

using namespace gpuledger;  // NOLINT: the functions below are C's

const char* gpuledger_torch_cuda_built_for(void) noexcept { return &pytorch::kBuiltFor[pytorch::kVersion]; }
int gpuledger_torch_cuda_install(void) noexcept { return Guard(pytorch::Install); }
int gpuledger_torch_cuda_observe(void) noexcept { return Guard(pytorch::Observe); }
int gpuledger_torch_cuda_way(void) noexcept { return pytorch::way_in; }
