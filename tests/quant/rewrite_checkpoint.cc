// rewrite_checkpoint IN OUT: reads a model that is in 4 bit, builds each weight's block, and writes it anew. For
// test_checkpoint_matches_bitsandbytes.py: what bitsandbytes wrote must come out as it went in.
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "gpuledger/checkpoint.h"
#include "gpuledger/codec.h"
#include "quant_state.h"

using namespace gpuledger;

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 2;
}

absl::Status ReadInto(const ModelSource& source, const TensorInfo* tensor, std::vector<std::byte>& block, Bytes at) {
  if (tensor == nullptr) return absl::OkStatus();
  return source.Read(*tensor, Bytes(), std::span(block).subspan(at.count(), tensor->size.count()));
}

absl::StatusOr<std::vector<std::byte>> BlockOf(const ModelSource& source, const StoredWeight& weight) {
  const FourBitLayout at = FourBitLayout::Of(weight.format, weight.elements);
  std::vector<std::byte> block(at.size.count());
  absl::Status status = ReadInto(source, weight.packed, block, Bytes());
  status.Update(ReadInto(source, weight.absmax, block, at.absmax_at));
  status.Update(ReadInto(source, weight.table, block, at.table_at));
  status.Update(ReadInto(source, weight.nested_absmax, block, at.nested_absmax_at));
  status.Update(ReadInto(source, weight.nested_table, block, at.nested_table_at));
  if (!status.ok()) return status;
  if (weight.format.double_quant) std::memcpy(block.data() + at.offset_at.count(), &weight.offset, sizeof(float));
  return block;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return Fail(absl::InvalidArgumentError("usage: rewrite_checkpoint IN OUT"));
  const auto source = OpenModel(argv[1]);
  if (!source.ok()) return Fail(source.status());
  const auto weights = FindStoredWeights(**source);
  if (!weights.ok()) return Fail(weights.status());

  std::map<std::string, std::vector<std::byte>> blocks;
  std::map<const TensorInfo*, bool> parts;
  std::vector<CheckpointTensor> tensors;
  for (const StoredWeight& weight : *weights) {
    absl::StatusOr<std::vector<std::byte>> block = BlockOf(**source, weight);
    if (!block.ok()) return Fail(block.status());
    blocks[weight.name] = *std::move(block);
    for (const TensorInfo* part :
         {weight.packed, weight.absmax, weight.table, weight.nested_absmax, weight.nested_table, weight.state}) {
      parts[part] = true;
    }
    tensors.emplace_back(QuantizedWeight{weight.name, weight.shape, weight.source_type, weight.format,
                                         weight.own_layout, blocks[weight.name]});
  }
  for (const TensorInfo& tensor : (*source)->tensors()) {
    if (parts.contains(&tensor)) continue;
    tensors.emplace_back(KeptTensor{tensor.name, tensor.dtype, tensor.shape, [&](Bytes at, std::span<std::byte> out) {
                                      return (*source)->Read(tensor, at, out);
                                    }});
  }
  const auto written = WriteCheckpoint(**source, argv[2], tensors);
  return written.ok() ? 0 : Fail(written.status());
}
