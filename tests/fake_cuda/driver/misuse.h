// What happens to a program that breaks the rules: it is stopped with one sentence, or gets the real driver's error.
#pragma once

#include <string>

#include "driver_api.h"

namespace fake_cuda {

// Aborts with "fake CUDA: CALL: SENTENCE", or returns `error` where FAKE_CUDA_MISUSE=error.
CUresult Misuse(CUresult error, const std::string& sentence);

// The same for calls that the rules of stream capture forbid, where FAKE_CUDA_CAPTURE_MISUSE=abort.
CUresult CaptureMisuse(CUresult error, const std::string& sentence);

}  // namespace fake_cuda
