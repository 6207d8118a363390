// For the files that are compiled twice: once as they are, and once with CUDA_API_PER_THREAD_DEFAULT_STREAM, with which
// the toolkit's headers give each function its second name (_ptsz or _ptds).
#ifndef GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_STREAM_CALLS_H_
#define GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_STREAM_CALLS_H_

#include "state.h"

namespace {

// `body` takes those driver calls whose stream 0 is what this compilation means by it.
template <typename Body>
cudaError_t WithStreams(Body body) {
  return fake_cudart::WithContext([&](const fake_cudart::Driver& driver) {
#ifdef CUDA_API_PER_THREAD_DEFAULT_STREAM
    return fake_cudart::FromDriver(body(driver.per_thread));
#else
    return fake_cudart::FromDriver(body(driver.legacy));
#endif
  });
}

}  // namespace

#endif  // GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_STREAM_CALLS_H_
