// PyTorch's maps of workspaces, found at run time: libtorch_cuda is not linked, and its header needs a CUDA toolkit.
#include "workspaces.h"

#include <dlfcn.h>

#include <map>
#include <shared_mutex>
#include <string_view>
#include <tuple>

#include <c10/core/Allocator.h>

#include "gpuledger/process.h"

namespace gpuledger::pytorch {
namespace {

// at::cuda::WorkspaceMapWithMutex of ATen/cuda/CUDAContextLight.h, as PyTorch 2.11 has it: by handle and stream.
struct Workspaces {
  std::map<std::tuple<void*, void*>, c10::DataPtr> map;
  std::shared_mutex mutex;
};
using WorkspacesOf = Workspaces& (*)();

WorkspacesOf Find(const char* symbol) {
  void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;  // not there, or not yet
  void* const found = dlsym(library, symbol);
  dlclose(library);  // whoever loaded it never unloads it
  return reinterpret_cast<WorkspacesOf>(found);
}

void Name(WorkspacesOf workspaces_of, std::string_view name) {
  if (workspaces_of == nullptr) return;
  Workspaces& workspaces = workspaces_of();
  const Payer payer{InternOwner(name), Role::kScratch};
  const std::shared_lock lock(workspaces.mutex);
  for (const auto& [handle_and_stream, data] : workspaces.map) {
    const auto address = reinterpret_cast<uint64_t>(data.get());
    const absl::StatusOr<LiveAllocation> charge = FindInProcess(address);
    if (charge.ok() && (charge->payer.owner != payer.owner || charge->payer.role != payer.role)) {
      static_cast<void>(TransferInProcess(address, payer));  // gone meanwhile: then it needs no name
    }
  }
}

}  // namespace

void NameWorkspaces() {
  static const WorkspacesOf cublas = Find("_ZN2at4cuda33cublas_handle_stream_to_workspaceEv");
  static const WorkspacesOf cublaslt = Find("_ZN2at4cuda35cublaslt_handle_stream_to_workspaceEv");
  Name(cublas, "cublas/workspace");
  Name(cublaslt, "cublaslt/workspace");
}

}  // namespace gpuledger::pytorch
