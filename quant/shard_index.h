// quant/shard_index.h - model.safetensors.index.json: which file of a split model holds which tensor.
//
// {"metadata": {...}, "weight_map": {TENSOR: FILE, ...}}; anything else in it is skipped. Source: transformers'
// documentation of sharded checkpoints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

namespace gpuledger {

inline constexpr std::string_view kModelFileName = "model.safetensors";  // of a model in one file
inline constexpr std::string_view kShardIndexName = "model.safetensors.index.json";
inline constexpr uint64_t kMostShardIndexBytes = 64u << 20;  // DeepSeek-V3's, with 91,991 tensors, has 9
inline constexpr uint32_t kMostShards = 10'000;

struct ShardIndex {
  struct Entry {
    std::string tensor;
    uint32_t file;  // index in files
  };
  std::vector<std::string> files;  // sorted; names without a directory
  std::vector<Entry> entries;      // in the order of the index; names are unique
};

// What file `index` of `count` is called, as transformers does: kModelFileName if it is the only one.
std::string ShardFileName(size_t index, size_t count);

// `text` is the index, `path` what errors call it. Errors, with the byte of the file: not JSON, not such an object,
// deeper than kMostJsonDepth, a key twice, and a file that is not a plain name ending in .safetensors.
absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& path, std::string_view text);

}  // namespace gpuledger
