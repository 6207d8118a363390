// quant/verify.h - how far 4-bit values are from what they were made of.
#pragma once

#include <cstdint>

#include "gpuledger/load.h"

namespace gpuledger {

// Sums over elements, which add up: a weight's from those of its parts, in their order, so that they are the same on
// every run.
struct ErrorSums {
  double error = 0;      // of |4-bit value - source|
  double max_error = 0;
  double square = 0;     // of source^2
  uint64_t elements = 0;
  uint64_t not_finite = 0;  // of the source; they are in no other sum
  uint64_t destroyed = 0;   // finite in the source, and not after: beside an infinity, a NaN; in no other sum either

  void Add(const ErrorSums& other);
};

// Compares elements [first, first + count) of a weight, at `source`, with its block. `first` begins a block.
ErrorSums CompareWithBlock(const FourBitLayout& layout, const std::byte* block, FloatType type, const std::byte* source,
                           uint64_t first, uint64_t count);

// mean |error| / rms of normally distributed values. Source: the yardsticks of bitsandbytes' tests.
double ExpectedRelativeError(const FourBitFormat& format);

WeightError MakeWeightError(const std::string& name, const FourBitFormat& format, const ErrorSums& sums);

}  // namespace gpuledger
