// PyTorch's own errors for the functions of its pluggable allocator, which live in the library without LibTorch.
#include <c10/util/Exception.h>

#include "gpuledger/gpuledger_pluggable.h"
#include "gpuledger/gpuledger_torch.h"

namespace {

void Throw(int out_of_memory, const char* message) {
  if (out_of_memory != 0) C10_THROW_ERROR(OutOfMemoryError, message);
  C10_THROW_ERROR(Error, message);
}

}  // namespace

void gpuledger_torch_throw_torch_errors(void) noexcept { gpuledger_torch_set_thrower(&Throw); }
