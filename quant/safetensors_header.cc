#include "safetensors_header.h"

#include <cstddef>
#include <iterator>
#include <utility>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "file_io.h"
#include "json_text.h"

namespace gpuledger {
namespace {

struct DtypeRow {
  std::string_view name;
  uint64_t bits;
};
// Index = Dtype.
constexpr DtypeRow kDtypes[] = {
    {"BOOL", 8},    {"F4", 4},       {"F6_E2M3", 6},     {"F6_E3M2", 6},     {"U8", 8},   {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8},  {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
    {"I16", 16},    {"U16", 16},     {"F16", 16},        {"BF16", 16},       {"I32", 32}, {"U32", 32},
    {"F32", 32},    {"C64", 64},     {"F64", 64},        {"I64", 64},        {"U64", 64},
};
static_assert(std::size(kDtypes) == static_cast<size_t>(Dtype::kU64) + 1);

// Receives the parser's events. Nothing nests deeper than {tensor: {shape: [, so deeper input stops at once.
class HeaderHandler final : public JsonHandler {
 public:
  HeaderHandler(const std::string& path, uint64_t header_size, uint64_t data_size)
      : JsonHandler(path, "the header", kSafetensorsLengthBytes),
        data_start_(kSafetensorsLengthBytes + header_size),
        data_size_(data_size) {}

  SafetensorsHeader Take() { return std::move(header_); }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("true or false"); }
  bool number_float(double, const std::string& text) override { return Unexpected("the number " + Quoted(text)); }
  bool number_integer(int64_t value) override { return Unexpected(fmt::format("the number {}", value)); }

  bool number_unsigned(uint64_t value) override {
    if (where_ == Where::kShape) {
      if (tensor_.shape.size() == kMostDimensions) {
        return Fail(fmt::format("has more than {} dimensions", kMostDimensions));
      }
      tensor_.shape.push_back(value);
      return true;
    }
    if (where_ == Where::kOffsets && offset_count_ < 2) {
      offsets_[offset_count_++] = value;
      return true;
    }
    return Unexpected(fmt::format("the number {}", value));
  }

  bool string(std::string& value) override {
    if (where_ == Where::kMetadata) {
      header_.metadata.emplace_back(std::move(key_), std::move(value));
      return true;
    }
    if (where_ != Where::kEntry || key_ != "dtype") return Unexpected("the string " + Quoted(value));
    if (!ParseDtype(value, &tensor_.dtype)) {
      return Fail(fmt::format("has dtype {}, which the format does not know; convert the file to one of F32, F16, "
                              "BF16 first", Quoted(value)));
    }
    return true;
  }

  bool start_object(size_t) override {
    if (where_ == Where::kStart) {
      where_ = Where::kFile;
    } else if (where_ == Where::kFile && key_ == kSafetensorsMetadataKey) {
      where_ = Where::kMetadata;
      metadata_keys_.clear();
    } else if (where_ == Where::kFile) {
      where_ = Where::kEntry;
      tensor_ = TensorInfo{std::move(key_), Dtype::kU8, {}, 0, 0, Bytes()};
      seen_ = 0;
      offset_count_ = 0;
    } else {
      return Unexpected("an object");
    }
    return true;
  }

  bool key(std::string& value) override {
    if (where_ == Where::kFile && !names_.insert(value).second) {
      return Reject(fmt::format("{} appears twice", Quoted(value)));
    }
    if (where_ == Where::kMetadata && !metadata_keys_.insert(value).second) {
      return Reject(fmt::format("{} appears twice in __metadata__", Quoted(value)));
    }
    if (where_ == Where::kEntry) {
      const unsigned field = value == "dtype" ? 1 : value == "shape" ? 2 : value == "data_offsets" ? 4 : 0;
      if (field == 0) return Fail(fmt::format("has the entry {}, which the format does not know", Quoted(value)));
      if ((seen_ & field) != 0) return Fail(fmt::format("has {} twice", value));
      seen_ |= field;
    }
    key_ = std::move(value);
    return true;
  }

  bool start_array(size_t) override {
    if (where_ != Where::kEntry || (key_ != "shape" && key_ != "data_offsets")) return Unexpected("an array");
    where_ = key_ == "shape" ? Where::kShape : Where::kOffsets;
    return true;
  }

  bool end_array() override {
    if (where_ == Where::kOffsets && offset_count_ != 2) return Fail("needs two data_offsets, begin and end");
    where_ = Where::kEntry;
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kEntry && !FinishTensor()) return false;
    where_ = where_ == Where::kFile ? Where::kEnd : Where::kFile;
    return true;
  }

 private:
  enum class Where { kStart, kFile, kMetadata, kEntry, kShape, kOffsets, kEnd };

  bool FinishTensor() {
    if (seen_ != 7) return Fail("needs dtype, shape and data_offsets");
    const auto [begin, end] = offsets_;
    if (begin > end) return Fail(fmt::format("has data_offsets [{}, {}], the end before the begin", begin, end));
    if (end > data_size_) {
      return Fail(fmt::format("ends at byte {} of the data, but there are only {}; the file is cut short or damaged, "
                              "fetch it again", end, data_size_));
    }
    if (!CountElements(tensor_.shape, tensor_.dtype, &tensor_.elements, &tensor_.size)) {
      return Fail(fmt::format("has shape [{}] and dtype {}, whose size {}", fmt::join(tensor_.shape, ", "),
                              DtypeName(tensor_.dtype),
                              DtypeBits(tensor_.dtype) % 8 != 0 ? "is no whole number of bytes, or overflows 64 bits"
                                                                : "overflows 64 bits"));
    }
    if (tensor_.size.count() != end - begin) {
      return Fail(fmt::format("has shape [{}] and dtype {}, which is {} bytes, but data_offsets of {} bytes",
                              fmt::join(tensor_.shape, ", "), DtypeName(tensor_.dtype), tensor_.size.count(),
                              end - begin));
    }
    tensor_.begin = data_start_ + begin;  // at most the file's size
    header_.tensors.push_back(std::move(tensor_));
    return true;
  }

  bool InTensor() const { return where_ == Where::kEntry || where_ == Where::kShape || where_ == Where::kOffsets; }

  bool Unexpected(const std::string& what) {
    switch (where_) {
      case Where::kShape:
        return Fail(fmt::format("has {} in its shape; dimensions are whole numbers from 0 to 2^64 - 1", what));
      case Where::kOffsets:
        return Fail(fmt::format("has {} in its data_offsets; they are two whole numbers from 0 to 2^64 - 1", what));
      case Where::kEntry: return Fail(fmt::format("has {} as its {}", what, key_));
      case Where::kMetadata:
        return Reject(fmt::format("__metadata__ has {} as {}; only strings are allowed", what, Quoted(key_)));
      default: return Reject(fmt::format("{} is {}; a tensor is an object", Quoted(key_), what));
    }
  }
  bool Fail(std::string_view what) { return Reject(fmt::format("tensor {} {}", Quoted(tensor_.name), what)); }

  const uint64_t data_start_;
  const uint64_t data_size_;
  SafetensorsHeader header_;

  Where where_ = Where::kStart;
  std::string key_;
  absl::flat_hash_set<std::string> names_;
  absl::flat_hash_set<std::string> metadata_keys_;
  TensorInfo tensor_{};
  unsigned seen_ = 0;
  uint64_t offsets_[2] = {};
  int offset_count_ = 0;
};

}  // namespace

std::string_view DtypeName(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].name; }
uint64_t DtypeBits(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].bits; }
Bytes DtypeSize(Dtype dtype) {
  if (DtypeBits(dtype) % 8 != 0) Die("DtypeSize: an element is no whole number of bytes");
  return Bytes(DtypeBits(dtype) / 8);
}

bool ParseDtype(std::string_view name, Dtype* dtype) {
  for (size_t i = 0; i < std::size(kDtypes); ++i) {
    if (kDtypes[i].name == name) {
      *dtype = static_cast<Dtype>(i);
      return true;
    }
  }
  return false;
}

bool CountElements(const std::vector<uint64_t>& shape, Dtype dtype, uint64_t* elements, Bytes* size) {
  uint64_t product = 1;
  for (const uint64_t dimension : shape) {
    if (__builtin_mul_overflow(product, dimension, &product)) return false;
  }
  // Eight elements are a whole number of bytes in every dtype.
  const uint64_t bits = DtypeBits(dtype);
  const uint64_t rest = product % 8 * bits;
  uint64_t bytes = 0;
  if (rest % 8 != 0 || __builtin_mul_overflow(product / 8, bits, &bytes) ||
      __builtin_add_overflow(bytes, rest / 8, &bytes)) {
    return false;
  }
  *elements = product;
  *size = Bytes(bytes);
  return true;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path, std::string_view json,
                                                         uint64_t data_size) {
  HeaderHandler handler(path, json.size(), data_size);
  if (absl::Status status = handler.Parse(json); !status.ok()) return status;
  return handler.Take();
}

}  // namespace gpuledger
