#include "safetensors_header.h"

#include <cstddef>
#include <iterator>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "file_io.h"

namespace gpuledger {
namespace {

struct DtypeRow {
  std::string_view name;
  uint64_t size;
};
// Index = Dtype.
constexpr DtypeRow kDtypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
    {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8}, {"F64", 8},
};
static_assert(std::size(kDtypes) == static_cast<size_t>(Dtype::kF64) + 1);

constexpr size_t kMostDimensions = 64;  // PyTorch's limit; without one, a shape could need more memory than its text

// Hands the parser one character after the other and counts them, so that an error can say where it is.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, uint64_t* count) : at_(at), count_(count) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    ++*count_;
    return *this;
  }
  friend bool operator==(const CountingIterator& a, const CountingIterator& b) { return a.at_ == b.at_; }
  friend bool operator!=(const CountingIterator& a, const CountingIterator& b) { return a.at_ != b.at_; }

 private:
  const char* at_;
  uint64_t* count_;
};

// Receives the parser's events. Nothing nests deeper than {tensor: {shape: [, so deeper input stops at once.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(const std::string& path, uint64_t header_size, uint64_t data_size)
      : path_(path), data_start_(kSafetensorsLengthBytes + header_size), data_size_(data_size) {}

  uint64_t* position() { return &position_; }
  const absl::Status& status() const { return status_; }
  SafetensorsHeader Take() { return std::move(header_); }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("true or false"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }
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
      return Fail(fmt::format("has dtype {}, which is not supported; convert the file to one of F32, F16, BF16 first",
                              Quoted(value)));
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

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) override {
    // "[id] parse error at line 1, column 2: REASON; last read: 'TOKEN'": only the reason is short and printable.
    std::string_view reason = error.what();
    if (const size_t colon = reason.find(": "); colon != reason.npos) reason.remove_prefix(colon + 2);
    reason = reason.substr(0, reason.find("; last read"));
    position_ = position;
    return Reject(fmt::format("the header is not valid JSON: {}", reason));
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
      return Fail(fmt::format("has shape [{}], whose size overflows 64 bits", fmt::join(tensor_.shape, ", ")));
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
  bool Reject(std::string_view what) {
    status_ = absl::InvalidArgumentError(
        fmt::format("{}: {} (in the header, byte {} of the file)", path_, what, kSafetensorsLengthBytes + position_));
    return false;
  }

  const std::string& path_;
  const uint64_t data_start_;
  const uint64_t data_size_;
  uint64_t position_ = 0;
  absl::Status status_;
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
Bytes DtypeSize(Dtype dtype) { return Bytes(kDtypes[static_cast<size_t>(dtype)].size); }

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
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(product, DtypeSize(dtype).count(), &bytes)) return false;
  *elements = product;
  *size = Bytes(bytes);
  return true;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path, std::string_view json,
                                                         uint64_t data_size) {
  // The parser takes a zero byte for the end of its input and would overlook what follows.
  if (const size_t zero = json.find('\0'); zero != json.npos) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the header has a zero byte at byte {} of the file", path, kSafetensorsLengthBytes + zero));
  }
  HeaderHandler handler(path, json.size(), data_size);
  const CountingIterator begin(json.data(), handler.position());
  const CountingIterator end(json.data() + json.size(), handler.position());
  if (!nlohmann::json::sax_parse(begin, end, &handler)) return handler.status();
  return handler.Take();
}

}  // namespace gpuledger
