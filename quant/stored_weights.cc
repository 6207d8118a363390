// The 4-bit weights of a model that is stored in 4 bit: FindStoredWeights.
#include <cstring>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "file_io.h"
#include "gpuledger/codec.h"
#include "json_text.h"
#include "quant_state.h"
#include "quantization_config.h"
#include "safetensors_header.h"

namespace gpuledger {
namespace {

constexpr uint64_t kMostStateBytes = 64u << 10;

class Finder {
 public:
  explicit Finder(const ModelSource& source) : source_(source) {
    for (const TensorInfo& tensor : source.tensors()) by_name_.emplace(tensor.name, &tensor);
  }

  absl::StatusOr<std::vector<StoredWeight>> Find() {
    const absl::StatusOr<ConfiguredMethod> method = MethodOf(source_);
    if (!method.ok()) return method.status();
    std::vector<StoredWeight> weights;
    for (const TensorInfo& tensor : source_.tensors()) {
      for (const bool own : {false, true}) {
        const std::string_view infix = own ? kOwnState : kBitsandbytesState;
        const size_t at = tensor.name.rfind(infix);
        if (at == std::string::npos || at == 0) continue;
        absl::StatusOr<StoredWeight> weight =
            Check(tensor, tensor.name.substr(0, at), std::string_view(tensor.name).substr(at + infix.size()), own);
        if (!weight.ok()) return weight.status();
        weights.push_back(*std::move(weight));
      }
    }
    if (absl::Status status = CheckTables(weights); !status.ok()) return status;
    const bool four_bit = *method == ConfiguredMethod::kFourBit || !weights.empty();
    if (absl::Status status = CheckNoneIsLeft(four_bit, weights); !status.ok()) return status;
    if (*method == ConfiguredMethod::kFourBit && weights.empty()) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: quantization_config says that the model is in 4 bit, but no tensor has a quant_state; if the "
          "weights are the original ones, remove quantization_config",
          ConfigName(source_)));
    }
    return weights;
  }

 private:
  absl::Status Bad(const TensorInfo& tensor, std::string_view what) const {
    return absl::InvalidArgumentError(fmt::format("{}: tensor {} (byte {} of the file) {}", source_.FileOf(tensor),
                                                  Quoted(tensor.name), tensor.begin, what));
  }

  // The part NAME.suffix, with this dtype and this many elements.
  absl::StatusOr<const TensorInfo*> Part(const TensorInfo& state, const std::string& name, std::string_view suffix,
                                         Dtype dtype, uint64_t elements) {
    const auto found = by_name_.find(name + std::string(suffix));
    if (found == by_name_.end()) {
      return Bad(state, fmt::format("has no {} beside it", Quoted(name + std::string(suffix))));
    }
    const TensorInfo& part = *found->second;
    if (part.dtype != dtype || part.elements != elements) {
      return Bad(part, fmt::format("has {} elements of dtype {}; the quant_state of {} needs {} of {}", part.elements,
                                   DtypeName(part.dtype), Quoted(name), elements, DtypeName(dtype)));
    }
    used_.insert(&part);
    return &part;
  }

  absl::StatusOr<StoredWeight> Check(const TensorInfo& tensor, std::string name, std::string_view type, bool own) {
    if (tensor.dtype != Dtype::kU8 || tensor.size.count() > kMostStateBytes) {
      return Bad(tensor, fmt::format("is {} bytes of {}; a quant_state is U8, and at most {} bytes",
                                     tensor.size.count(), DtypeName(tensor.dtype), kMostStateBytes));
    }
    std::string text(tensor.size.count(), '\0');
    absl::Status read = source_.Read(tensor, Bytes(), std::as_writable_bytes(std::span(text)));
    if (!read.ok()) return read;
    absl::StatusOr<QuantState> state = ParseQuantState(source_.FileOf(tensor), tensor.begin, tensor.name, text);
    if (!state.ok()) return state.status();
    if (QuantTypeName(state->format.type) != type) {
      return Bad(tensor, fmt::format("has quant_type {}", QuantTypeName(state->format.type)));
    }
    StoredWeight weight{.name = std::move(name),
                        .format = state->format,
                        .source_type = state->source_type,
                        .shape = std::move(state->shape),
                        .elements = 0,
                        .own_layout = own,
                        .offset = state->offset,
                        .packed = nullptr,
                        .absmax = nullptr,
                        .table = nullptr,
                        .nested_absmax = nullptr,
                        .nested_table = nullptr,
                        .state = &tensor};
    Bytes size;
    if (!CountElements(weight.shape, Dtype::kF32, &weight.elements, &size)) {
      return Bad(tensor, fmt::format("has shape [{}], whose size overflows 64 bits", fmt::join(weight.shape, ", ")));
    }
    absl::Status status = FindParts(weight);
    if (!status.ok()) return status;
    if (!seen_.insert(weight.name).second) return Bad(tensor, "is the second quant_state of its weight");
    return weight;
  }

  absl::Status FindParts(StoredWeight& weight) {
    const auto found = by_name_.find(weight.name);
    if (found == by_name_.end()) return Bad(*weight.state, fmt::format("has no {} beside it", Quoted(weight.name)));
    // Any dtype: bitsandbytes may store the codes as another type of the same bytes (quant_storage).
    weight.packed = found->second;
    if (weight.packed->size != PackedBytes(weight.elements)) {
      return Bad(*weight.packed, fmt::format("has {} bytes; shape [{}] in 4 bit needs {}", weight.packed->size.count(),
                                             fmt::join(weight.shape, ", "), PackedBytes(weight.elements).count()));
    }
    const uint64_t blocks = BlockCount(weight.elements, weight.format.block);
    const auto part = [&](const TensorInfo*& to, std::string_view suffix, Dtype dtype, uint64_t elements) {
      const absl::StatusOr<const TensorInfo*> tensor = Part(*weight.state, weight.name, suffix, dtype, elements);
      if (tensor.ok()) to = *tensor;
      return tensor.status();
    };
    const bool nested = weight.format.double_quant;
    absl::Status status = part(weight.absmax, ".absmax", nested ? Dtype::kU8 : Dtype::kF32, blocks);
    if (status.ok()) status = part(weight.table, ".quant_map", Dtype::kF32, 16);
    if (!status.ok() || !nested) return status;
    status = part(weight.nested_absmax, ".nested_absmax", Dtype::kF32, BlockCount(blocks, kNestedBlock));
    if (status.ok()) status = part(weight.nested_table, ".nested_quant_map", Dtype::kF32, 256);
    return status;
  }

  // A table of other values would dequantize to other weights than ours does.
  absl::Status CheckTable(const TensorInfo& tensor, std::span<const float> expected) {
    std::vector<float> stored(expected.size());
    absl::Status read = source_.Read(tensor, Bytes(), std::as_writable_bytes(std::span(stored)));
    if (!read.ok()) return read;
    for (size_t i = 0; i < stored.size(); ++i) {
      if (std::memcmp(&stored[i], &expected[i], sizeof(float)) == 0) continue;
      return Bad(tensor, fmt::format("has {} as entry {} where the format's table has {}; tables of one's own are not "
                                     "supported",
                                     stored[i], i, expected[i]));
    }
    return absl::OkStatus();
  }

  absl::Status CheckTables(const std::vector<StoredWeight>& weights) {
    for (const StoredWeight& weight : weights) {
      absl::Status status = CheckTable(*weight.table, CodeTable(weight.format.type));
      if (status.ok() && weight.format.double_quant) status = CheckTable(*weight.nested_table, NestedTable());
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // What belongs to no state: the state is missing, and the weight would be taken for bytes. Scales and tables show it;
  // in a model with 4-bit weights so do codes alone, by their shape [n, 1].
  absl::Status CheckNoneIsLeft(bool four_bit, const std::vector<StoredWeight>& weights) const {
    absl::flat_hash_set<const TensorInfo*> packed;
    for (const StoredWeight& weight : weights) packed.insert(weight.packed);
    for (const TensorInfo& tensor : source_.tensors()) {
      for (const std::string_view suffix : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
        if (!tensor.name.ends_with(suffix) || used_.contains(&tensor)) continue;
        const std::string_view name = std::string_view(tensor.name).substr(0, tensor.name.size() - suffix.size());
        if (by_name_.contains(name)) return Bad(tensor, fmt::format("has no quant_state of {} beside it", Quoted(name)));
      }
    }
    for (const TensorInfo& tensor : source_.tensors()) {
      const bool codes = tensor.dtype == Dtype::kU8 && tensor.shape.size() == 2 && tensor.shape[1] == 1;
      if (!four_bit || !codes || packed.contains(&tensor) || !tensor.name.ends_with(".weight")) continue;
      return Bad(tensor, "looks like 4-bit codes, but has no quant_state beside it; fetch the file again");
    }
    return absl::OkStatus();
  }

  const ModelSource& source_;
  absl::flat_hash_map<std::string_view, const TensorInfo*> by_name_;
  absl::flat_hash_set<const TensorInfo*> used_;
  absl::flat_hash_set<std::string> seen_;
};

}  // namespace

absl::StatusOr<std::vector<StoredWeight>> FindStoredWeights(const ModelSource& source) { return Finder(source).Find(); }

}  // namespace gpuledger
