// Everything that the table lists and this library does not do: an error, never a crash.
#include "state.h"
#include "symbol.h"

namespace fake_cudart {

int Unsupported(const fake_cuda::Symbol&) { return Remember(cudaErrorNotSupported); }

}  // namespace fake_cudart
