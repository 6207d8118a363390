// quant/safetensors_header.h - the JSON part of a safetensors file, parsed without ever building a tree of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/safetensors.h"

namespace gpuledger {

inline constexpr uint64_t kSafetensorsLengthBytes = 8;           // in front of the header
inline constexpr uint64_t kSafetensorsMostHeader = 100'000'000;  // the format's own limit
// PyTorch's limit; without one, a shape could need more memory than its text.
inline constexpr size_t kMostDimensions = 64;
inline constexpr std::string_view kSafetensorsMetadataKey = "__metadata__";

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the header's order; `begin` is a file offset
  std::vector<std::pair<std::string, std::string>> metadata;
};

// False, and `dtype` untouched, if no dtype has that name.
bool ParseDtype(std::string_view name, Dtype* dtype);

// The product of `shape` and its size in bytes; false if either needs more than 64 bits, or if the size is no whole
// number of bytes.
bool CountElements(const std::vector<uint64_t>& shape, Dtype dtype, uint64_t* elements, Bytes* size);

// The order of tensors within a file, as the safetensors package has it, so that each is aligned to its type: falling
// dtype, then name. For whatever has both.
template <class Tensor>
bool ComesBefore(const Tensor& a, const Tensor& b) {
  return std::tie(b.dtype, a.name) < std::tie(a.dtype, b.name);
}

// Checks each entry alone (also that it lies within `data_size` bytes of data), not how entries lie beside each other.
// Errors name `path`, the tensor and the byte of the file up to which the header had been read.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path, std::string_view json,
                                                         uint64_t data_size);

}  // namespace gpuledger
