#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "file_io.h"
#include "gpuledger/safetensors.h"
#include "safetensors_header.h"

namespace gpuledger {
namespace {

absl::Status Bad(const std::string& path, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", path, what));
}

uint64_t End(const TensorInfo& tensor) { return tensor.begin + tensor.size.count(); }

// Tensors, sorted by offset, must lie end to end and fill the data: no byte belongs to two, and none to nobody.
absl::Status CheckLayout(const std::string& path, const std::vector<TensorInfo>& tensors, uint64_t data_start,
                         uint64_t file_size) {
  uint64_t expected = data_start;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin < expected) {
      return Bad(path, fmt::format("tensor {} overlaps tensor {}: it begins at byte {} of the file, before byte {}",
                                   Quoted(tensor.name), Quoted(previous->name), tensor.begin, expected));
    }
    if (tensor.begin > expected) {
      return Bad(path, fmt::format("{} bytes before tensor {}, at byte {} of the file, belong to no tensor",
                                   tensor.begin - expected, Quoted(tensor.name), expected));
    }
    expected = End(tensor);
    previous = &tensor;
  }
  if (expected != file_size) {
    return Bad(path, fmt::format("{} bytes after the last tensor, at byte {} of the file, belong to no tensor",
                                 file_size - expected, expected));
  }
  return absl::OkStatus();
}

}  // namespace

struct SafetensorsFile::Impl {
  std::string path;
  FileDescriptor file;
  FileState state;  // when it was opened
  uint64_t data_start;
  std::vector<TensorInfo> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
  absl::flat_hash_map<std::string_view, const TensorInfo*> by_name;
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  FileState state;
  absl::StatusOr<FileDescriptor> file = OpenForReading(path, &state);
  if (!file.ok()) return file.status();
  const uint64_t file_size = state.size;
  if (file_size < kSafetensorsLengthBytes) {
    return Bad(path, fmt::format("has {} bytes, but a safetensors file begins with 8 of header length", file_size));
  }

  const auto read = [&](uint64_t offset, std::span<std::byte> out) -> absl::Status {
    const absl::StatusOr<uint64_t> got = ReadAt(*file, path, offset, out);
    if (!got.ok()) return got.status();
    if (*got < out.size()) return Bad(path, fmt::format("ended at byte {} while its header was read", offset + *got));
    return absl::OkStatus();
  };
  std::array<std::byte, kSafetensorsLengthBytes> prefix;
  if (absl::Status status = read(0, prefix); !status.ok()) return status;
  if (std::memcmp(prefix.data(), "version ", prefix.size()) == 0) {
    return Bad(path, "is a Git LFS pointer, not the weights: git lfs pull fetches them");
  }
  uint64_t header_size = 0;
  for (size_t i = prefix.size(); i-- > 0;) header_size = header_size << 8 | static_cast<uint64_t>(prefix[i]);
  if (header_size > kSafetensorsMostHeader) {
    return Bad(path, fmt::format("claims a header of {} bytes (byte 0 of the file), more than the {} allowed; "
                                 "is it a safetensors file?", header_size, kSafetensorsMostHeader));
  }
  if (header_size > file_size - kSafetensorsLengthBytes) {
    return Bad(path, fmt::format("claims a header of {} bytes (byte 0 of the file), but only {} follow; the file is "
                                 "cut short or damaged, fetch it again",
                                 header_size, file_size - kSafetensorsLengthBytes));
  }
  std::string json(header_size, '\0');
  if (absl::Status status = read(kSafetensorsLengthBytes, std::as_writable_bytes(std::span(json))); !status.ok()) {
    return status;
  }
  if (json.empty() || json.front() != '{') return Bad(path, "the header does not begin with { (byte 8 of the file)");

  const uint64_t data_start = kSafetensorsLengthBytes + header_size;
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(path, json, file_size - data_start);
  if (!header.ok()) return header.status();
  std::vector<TensorInfo>& tensors = header->tensors;
  // Empty tensors share their offset with a neighbour and come before it.
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.size) < std::pair(b.begin, b.size);
  });
  if (absl::Status status = CheckLayout(path, tensors, data_start, file_size); !status.ok()) return status;

  auto impl = std::make_unique<Impl>(Impl{path, *std::move(file), state, data_start, std::move(tensors),
                                          std::move(header->metadata), {}});
  impl->by_name.reserve(impl->tensors.size());
  for (const TensorInfo& tensor : impl->tensors) impl->by_name.emplace(tensor.name, &tensor);
  return SafetensorsFile(std::move(impl));
}

const std::string& SafetensorsFile::path() const { return impl_->path; }
const std::vector<TensorInfo>& SafetensorsFile::tensors() const { return impl_->tensors; }
const std::vector<std::pair<std::string, std::string>>& SafetensorsFile::metadata() const { return impl_->metadata; }

const TensorInfo* SafetensorsFile::Find(std::string_view name) const {
  const auto found = impl_->by_name.find(name);
  return found == impl_->by_name.end() ? nullptr : found->second;
}

absl::Status SafetensorsFile::Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const {
  const uint64_t size = tensor.size.count();
  if (tensor.begin < impl_->data_start || tensor.begin > impl_->state.size || size > impl_->state.size - tensor.begin) {
    return Bad(impl_->path, fmt::format("tensor {} is not one of this file's", Quoted(tensor.name)));
  }
  if (offset > tensor.size || out.size() > size - offset.count()) {
    return Bad(impl_->path, fmt::format("tensor {} has {} bytes; {} from byte {} on are not in it", Quoted(tensor.name),
                                        size, out.size(), offset.count()));
  }
  const uint64_t begin = tensor.begin + offset.count();
  const absl::StatusOr<uint64_t> got = ReadAt(impl_->file, impl_->path, begin, out);
  if (!got.ok()) return got.status();
  if (*got < out.size()) {
    return Bad(impl_->path,
               fmt::format("tensor {}: the file ends at byte {}, but it had {} bytes when it was opened; it was "
                           "changed while it was read", Quoted(tensor.name), begin + *got, impl_->state.size));
  }
  if (begin + out.size() < End(tensor)) return absl::OkStatus();
  // Once a tensor: whoever still writes the file has written other bytes than those that were read, or will.
  const absl::StatusOr<FileState> now = StateOf(impl_->file, impl_->path);
  if (!now.ok()) return now.status();
  if (*now == impl_->state) return absl::OkStatus();
  return Bad(impl_->path, fmt::format("tensor {}: the file was written to while it was read (it had {} bytes when it "
                                      "was opened, and has {} now); wait until it is complete", Quoted(tensor.name),
                                      impl_->state.size, now->size));
}

}  // namespace gpuledger
