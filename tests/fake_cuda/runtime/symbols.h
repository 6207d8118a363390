// What a program's own CUDA code registers before main: modules, kernels and device variables, by the address that the
// host code knows them by. A module is given to the driver when one of its kernels is first needed.
#ifndef GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_SYMBOLS_H_
#define GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_SYMBOLS_H_

#include "state.h"

namespace fake_cudart {

// The driver's kernel for a host function; cudaErrorInvalidDeviceFunction if none was registered under it.
cudaError_t FindKernel(const Driver& driver, const void* host_function, CUkernel* kernel);

// Where bytes [offset, offset + size) of a device variable are on the current device; cudaErrorInvalidSymbol if no
// variable was registered under it, cudaErrorInvalidValue if it has fewer bytes. Its memory is taken from the driver at
// the first call, since the driver here cannot read from a module how large its variables are.
cudaError_t SymbolRange(const void* host_variable, size_t offset, size_t size, char** address);
cudaError_t SymbolSize(const void* host_variable, size_t* size);

// After a device was reset, the memory of its variables is gone.
void ForgetSymbolMemory(int device);

}  // namespace fake_cudart

#endif  // GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_SYMBOLS_H_
