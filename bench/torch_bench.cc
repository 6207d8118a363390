// The peer within PyTorch: LibTorch's own allocator of host memory, which records nothing.
#include <c10/core/CPUAllocator.h>

#include "pairs.h"

namespace gpuledger {
namespace {

class TorchCpu {
 public:
  class Lane {
   public:
    Lane(TorchCpu&, int) {}
    void* Allocate(uint64_t size) { return allocator_->raw_allocate(size); }
    void Free(void* block, uint64_t) { allocator_->raw_deallocate(block); }

   private:
    c10::Allocator* allocator_ = c10::GetDefaultCPUAllocator();
  };
};

[[maybe_unused]] const bool registered = [] {
  RegisterPairs<TorchCpu>("torch");
  return true;
}();

}  // namespace
}  // namespace gpuledger
