// gpuledger/safetensors.h - reading and writing safetensors files, trusting neither.
//
// Format: 8 bytes little-endian header length N, N bytes of JSON, then the data; an entry is
// {"dtype", "shape", "data_offsets": [begin, end]} relative to the data's start; no holes, no overlap.
// Source: the safetensors documentation. Files are read with pread (a mapped file that shrinks kills the process).
//
// Every error names file, tensor and offset: kInvalidArgument for bad content, kNotFound / kPermissionDenied /
// kResourceExhausted (disk full) from the system. No input crashes, hangs or allocates more than the header's size
// allows. A SafetensorsFile is immutable after Open and thread-safe; a SafetensorsWriter belongs to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/types.h"

namespace gpuledger {

// In the order of the safetensors package (0.8), by which it sorts the tensors of a file: rising alignment.
enum class Dtype : uint8_t {
  kBool, kF4, kF6E2M3, kF6E3M2, kU8, kI8, kF8E5M2, kF8E4M3, kF8E8M0, kF8E4M3Fnuz, kF8E5M2Fnuz,
  kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kC64, kF64, kI64, kU64
};
GPULEDGER_EXPORT std::string_view DtypeName(Dtype dtype);  // "F32", "BF16", ... as in the file
GPULEDGER_EXPORT uint64_t DtypeBits(Dtype dtype);          // of one element: 4, 6, 8, 16, 32 or 64
GPULEDGER_EXPORT Bytes DtypeSize(Dtype dtype);             // of one element; fatal if that is no whole number of bytes

struct TensorInfo {
  std::string name;
  Dtype dtype;
  std::vector<uint64_t> shape;
  uint64_t elements;  // product of shape, checked
  uint64_t begin;     // file offset of its first byte
  Bytes size;         // elements * DtypeBits / 8, checked: a whole number of bytes
  uint32_t file = 0;  // which file of its ModelSource
};

class GPULEDGER_EXPORT SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  [[nodiscard]] const std::string& path() const;
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const;  // in order of their offsets
  [[nodiscard]] const TensorInfo* Find(std::string_view name) const;  // null if there is none
  [[nodiscard]] const std::vector<std::pair<std::string, std::string>>& metadata() const;
  // Reads `out.size()` bytes of `tensor` from `offset` (relative to the tensor). A file that has become shorter since
  // Open is kInvalidArgument; one that has grown or was written to is, too, in the read that reaches the tensor's end.
  absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// One tensor to write; its data is streamed in Append calls in the order in which the tensors were declared.
struct TensorSpec {
  std::string name;
  Dtype dtype;
  std::vector<uint64_t> shape;
};

// Writes to a temporary name beside `path`, synced and renamed by Finish; a writer that dies leaves nothing under `path`.
class GPULEDGER_EXPORT SafetensorsWriter {
 public:
  // kAlreadyExists if `path` exists. The header is written at once: alignment-padded, tensors in the given order.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path, const std::vector<TensorSpec>& tensors,
                                                  const std::vector<std::pair<std::string, std::string>>& metadata);
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();  // without Finish: removes the temporary file

  // The next bytes of the data section. kInvalidArgument if more than the declared tensors hold.
  absl::Status Append(std::span<const std::byte> data);
  absl::Status Finish();  // kInvalidArgument if data is missing

 private:
  struct Impl;
  explicit SafetensorsWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace gpuledger
