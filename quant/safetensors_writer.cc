#include <unistd.h>

#include <array>
#include <memory>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "file_io.h"
#include "gpuledger/safetensors.h"
#include "safetensors_header.h"

namespace gpuledger {
namespace {

using Json = nlohmann::ordered_json;

// Appends without the search for an equal key that makes ordered_json quadratic; the callers have looked.
void Put(Json& object, std::string key, Json value) {
  auto& members = object.get_ref<Json::object_t&>();
  static_cast<Json::object_t::Container&>(members).emplace_back(std::move(key), std::move(value));
}

// The header's text, padded with spaces to a multiple of 8, and the size of the data that it describes.
absl::StatusOr<std::string> MakeHeader(const std::string& path, const std::vector<TensorSpec>& tensors,
                                       const std::vector<std::pair<std::string, std::string>>& metadata,
                                       uint64_t* data_size) {
  const auto bad = [&](const std::string& name, std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("{}: {} {}", path, Quoted(name), what));
  };
  Json header = Json::object();
  if (!metadata.empty()) {
    Json object = Json::object();
    absl::flat_hash_set<std::string_view> keys;
    for (const auto& [key, value] : metadata) {
      if (!keys.insert(key).second) return bad(key, "appears twice in the metadata");
      Put(object, key, value);
    }
    Put(header, std::string(kSafetensorsMetadataKey), std::move(object));
  }
  absl::flat_hash_set<std::string_view> names = {kSafetensorsMetadataKey};
  uint64_t begin = 0;
  for (const TensorSpec& tensor : tensors) {
    if (!names.insert(tensor.name).second) return bad(tensor.name, "is the name of two tensors, or is reserved");
    uint64_t elements = 0;
    Bytes size;
    uint64_t end = 0;
    if (!CountElements(tensor.shape, tensor.dtype, &elements, &size) ||
        __builtin_add_overflow(begin, size.count(), &end)) {
      return bad(tensor.name, "makes the file larger than 2^64 bytes");
    }
    Json entry = {{"dtype", DtypeName(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    Put(header, tensor.name, std::move(entry));
    begin = end;
  }
  *data_size = begin;

  std::string text;
  try {
    text = header.dump();
  } catch (const Json::type_error&) {
    return absl::InvalidArgumentError(fmt::format("{}: a tensor's name or the metadata is not UTF-8", path));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kSafetensorsMostHeader) {
    return absl::InvalidArgumentError(fmt::format("{}: the header would have {} bytes, more than the {} allowed", path,
                                                  text.size(), kSafetensorsMostHeader));
  }
  return text;
}

}  // namespace

struct SafetensorsWriter::Impl {
  ~Impl() {
    if (!published) ::unlink(temporary.c_str());
  }
  std::string path;
  std::string temporary;
  FileDescriptor file;
  uint64_t written = 0;
  uint64_t size = 0;  // of the finished file
  bool published = false;
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, const std::vector<TensorSpec>& tensors,
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  uint64_t data_size = 0;
  const absl::StatusOr<std::string> header = MakeHeader(path, tensors, metadata, &data_size);
  if (!header.ok()) return header.status();
  if (Exists(path)) return absl::AlreadyExistsError(path + ": already exists, and is not replaced");

  std::string temporary = TemporaryNameFor(path);
  absl::StatusOr<FileDescriptor> file = CreateNew(temporary);
  if (!file.ok()) return file.status();
  std::unique_ptr<Impl> impl(new Impl{path, std::move(temporary), *std::move(file)});
  const uint64_t header_size = header->size();
  if (__builtin_add_overflow(data_size, kSafetensorsLengthBytes + header_size, &impl->size)) {
    return absl::InvalidArgumentError(path + ": would be larger than 2^64 bytes");
  }
  std::array<std::byte, kSafetensorsLengthBytes> prefix;
  for (size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<std::byte>(header_size >> (8 * i));
  SafetensorsWriter writer(std::move(impl));
  if (absl::Status status = writer.Append(prefix); !status.ok()) return status;
  if (absl::Status status = writer.Append(std::as_bytes(std::span(*header))); !status.ok()) return status;
  return writer;
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> data) {
  const uint64_t left = impl_->size - impl_->written;
  if (data.size() > left) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} bytes to write, but the declared tensors end after {}", impl_->path, data.size(), left));
  }
  return WriteAll(impl_->file, impl_->path, data, &impl_->written);
}

absl::Status SafetensorsWriter::Finish() {
  if (impl_->written != impl_->size) {
    return absl::InvalidArgumentError(fmt::format("{}: {} of {} bytes are missing", impl_->path,
                                                  impl_->size - impl_->written, impl_->size));
  }
  if (absl::Status status = SyncAndClose(impl_->file, impl_->path); !status.ok()) return status;
  if (absl::Status status = PublishAs(impl_->temporary, impl_->path); !status.ok()) return status;
  impl_->published = true;
  return absl::OkStatus();
}

}  // namespace gpuledger
