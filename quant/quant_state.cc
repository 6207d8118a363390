#include "quant_state.h"

#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "file_io.h"
#include "json_text.h"
#include "safetensors_header.h"

namespace gpuledger {
namespace {

constexpr std::array<std::string_view, 7> kKeys = {"quant_type",       "blocksize",    "dtype",        "shape",
                                                   "nested_blocksize", "nested_dtype", "nested_offset"};
constexpr size_t kPlainKeys = 4;  // without double quantization

class StateHandler final : public JsonHandler {
 public:
  StateHandler(const std::string& path, uint64_t offset, std::string_view tensor)
      : JsonHandler(path, fmt::format("tensor {}", Quoted(tensor)), offset) {}

  // True once the object has ended and has all its keys.
  bool complete() const { return seen_ == (1u << kPlainKeys) - 1 || seen_ == (1u << kKeys.size()) - 1; }
  QuantState Take() {
    state_.format.double_quant = seen_ == (1u << kKeys.size()) - 1;
    return std::move(state_);
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("true or false"); }
  bool number_integer(int64_t value) override {
    return key_ == "nested_offset" ? Offset(static_cast<double>(value)) : Unexpected(fmt::to_string(value));
  }
  bool number_float(double value, const std::string& text) override {
    return key_ == "nested_offset" ? Offset(value) : Unexpected(Quoted(text));
  }
  bool number_unsigned(uint64_t value) override {
    if (in_shape_) {
      if (state_.shape.size() == kMostDimensions) {
        return Reject(fmt::format("the shape has more than {} dimensions", kMostDimensions));
      }
      state_.shape.push_back(value);
      return true;
    }
    if (key_ == "nested_offset") return Offset(static_cast<double>(value));
    if (key_ == "blocksize") {
      if (!IsBlockSize(value)) {
        return Reject(fmt::format("a block size of {} is none of 32, 64, 128 ... 4096", value));
      }
      state_.format.block = static_cast<uint32_t>(value);
      return true;
    }
    if (key_ == "nested_blocksize") {
      return value == kNestedBlock ||
             Reject(fmt::format("nested blocks of {} scales; only {} is known", value, kNestedBlock));
    }
    return Unexpected(fmt::to_string(value));
  }
  bool string(std::string& value) override {
    if (key_ == "quant_type" && !in_shape_) {
      return ParseQuantType(value, &state_.format.type) ||
             Reject(fmt::format("quant_type {} is neither nf4 nor fp4", Quoted(value)));
    }
    if (key_ == "dtype" && !in_shape_) return SourceType(value);
    if (key_ == "nested_dtype") {
      return value == "float32" || Reject(fmt::format("nested_dtype {} is not float32", Quoted(value)));
    }
    return Unexpected(Quoted(value));
  }
  bool start_object(size_t) override { return !std::exchange(started_, true) || Unexpected("an object"); }
  bool end_object() override { return true; }
  bool start_array(size_t) override {
    if (!started_ || key_ != "shape" || in_shape_) return Unexpected("an array");
    return in_shape_ = true;
  }
  bool end_array() override {
    in_shape_ = false;
    return true;
  }
  bool key(std::string& value) override {
    for (size_t i = 0; i < kKeys.size(); ++i) {
      if (kKeys[i] != value) continue;
      if ((seen_ & 1u << i) != 0) return Reject(fmt::format("{} appears twice", value));
      seen_ |= 1u << i;
      key_ = kKeys[i];
      return true;
    }
    return Reject(fmt::format("the entry {} is not known", Quoted(value)));
  }

 private:
  bool Offset(double value) {
    state_.offset = static_cast<float>(value);
    return std::isfinite(state_.offset) || Reject(fmt::format("a nested_offset of {} is no float32", value));
  }
  bool SourceType(std::string_view name) {
    for (const FloatType type : {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBFloat16}) {
      if (TorchName(type) != name) continue;
      state_.source_type = type;
      return true;
    }
    return Reject(fmt::format("dtype {} is none of float32, float16, bfloat16", Quoted(name)));
  }
  bool Unexpected(const std::string& what) {
    if (!started_) return Reject(fmt::format("the state is {}, not an object", what));
    return Reject(fmt::format("{} is {}", key_, what));
  }

  QuantState state_{};
  unsigned seen_ = 0;
  bool started_ = false;
  bool in_shape_ = false;
  std::string_view key_;
};

// As Python's json writes a float: the shortest text that reads as the same double, and never like an integer.
std::string PythonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

}  // namespace

std::string_view TorchName(FloatType type) {
  switch (type) {
    case FloatType::kFloat32: return "float32";
    case FloatType::kFloat16: return "float16";
    case FloatType::kBFloat16: return "bfloat16";
  }
  Die("FloatType: no such type");
}

std::string QuantStateText(const QuantState& state) {
  std::string text = fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}])",
                                 QuantTypeName(state.format.type), state.format.block, TorchName(state.source_type),
                                 fmt::join(state.shape, ", "));
  if (state.format.double_quant) {
    text += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})", kNestedBlock,
                        PythonFloat(state.offset));
  }
  return text + "}";
}

absl::StatusOr<QuantState> ParseQuantState(const std::string& path, uint64_t offset, std::string_view tensor,
                                           std::string_view text) {
  StateHandler handler(path, offset, tensor);
  if (absl::Status status = handler.Parse(text); !status.ok()) return status;
  if (!handler.complete()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor {} (byte {} of the file) needs {}, and for double quantization {} as well", path,
                    Quoted(tensor), offset, fmt::join(kKeys.begin(), kKeys.begin() + kPlainKeys, ", "),
                    fmt::join(kKeys.begin() + kPlainKeys, kKeys.end(), ", ")));
  }
  return handler.Take();
}

}  // namespace gpuledger
