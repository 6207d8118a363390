#include "shard_index.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include "file_io.h"
#include "json_text.h"

namespace gpuledger {
namespace {

// Why a name may not be opened; empty if it may.
std::string_view ReasonToRefuse(std::string_view file) {
  if (file.find('\0') != file.npos) return "which has a zero byte";
  if (file.find('/') != file.npos) return "which leads out of the model's directory";
  if (!file.ends_with(".safetensors")) return "which is not a safetensors file";
  if (file.size() > 255) return "which is longer than a file's name can be";
  return {};
}

class IndexHandler final : public JsonHandler {
 public:
  explicit IndexHandler(const std::string& path) : JsonHandler(path, "it", 0) {}

  absl::StatusOr<ShardIndex> Take() {
    if (!seen_map_) {
      return absl::InvalidArgumentError(fmt::format("{}: has no weight_map, which says where each tensor is", path()));
    }
    return std::move(index_);
  }

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("true or false"); }
  bool number_integer(int64_t value) override { return Value(fmt::format("the number {}", value)); }
  bool number_unsigned(uint64_t value) override { return Value(fmt::format("the number {}", value)); }
  bool number_float(double, const std::string&) override { return Value("a number"); }
  bool start_array(size_t) override { return Value("an array") && Deeper(); }
  bool end_array() override { return Shallower(); }

  bool start_object(size_t) override {
    if (depth_ == 1 && key_ == "weight_map") {
      in_map_ = seen_map_ = true;
    } else if (depth_ > 0 && !Value("an object")) {
      return false;
    }
    return Deeper();
  }
  bool end_object() override {
    if (depth_ == 2) in_map_ = false;
    return Shallower();
  }

  bool key(std::string& value) override {
    if (depth_ == 1 && !keys_.insert(value).second) return Reject(Quoted(value) + " appears twice");
    if (in_map_ && !tensors_.insert(value).second) {
      return Reject(fmt::format("tensor {} appears twice in weight_map", Quoted(value)));
    }
    if (depth_ == 1 || in_map_) key_ = std::move(value);
    return true;
  }

  bool string(std::string& value) override {
    if (!in_map_) return Value("a string");
    if (const std::string_view reason = ReasonToRefuse(value); !reason.empty()) {
      return Reject(fmt::format("tensor {} is in {}, {}", Quoted(key_), Quoted(value), reason));
    }
    const auto [found, added] = files_.emplace(std::move(value), static_cast<uint32_t>(index_.files.size()));
    if (added) index_.files.push_back(found->first);
    if (index_.files.size() > kMostShards) return Reject(fmt::format("names more than {} files", kMostShards));
    index_.entries.push_back({std::move(key_), found->second});
    return true;
  }

 private:
  // Any value outside of the map is skipped.
  bool Value(std::string_view what) {
    if (depth_ == 0) return Reject(fmt::format("is {}, not an object", what));
    if (in_map_) return Reject(fmt::format("tensor {} is in {}; a file's name is a string", Quoted(key_), what));
    if (depth_ == 1 && key_ == "weight_map") return Reject(fmt::format("weight_map is {}, not an object", what));
    return true;
  }
  bool Deeper() {
    return ++depth_ <= kMostJsonDepth || Reject(fmt::format("nests deeper than {} levels", kMostJsonDepth));
  }
  bool Shallower() {
    --depth_;
    return true;
  }

  ShardIndex index_;
  int depth_ = 0;
  bool in_map_ = false;
  bool seen_map_ = false;
  std::string key_;
  absl::flat_hash_set<std::string> keys_;
  absl::flat_hash_set<std::string> tensors_;
  absl::flat_hash_map<std::string, uint32_t> files_;
};

// Files in the order of their names, which is the order of their numbers.
void SortFiles(ShardIndex& index) {
  std::vector<uint32_t> order(index.files.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return index.files[a] < index.files[b]; });
  std::vector<uint32_t> place(order.size());
  std::vector<std::string> files;
  for (const uint32_t old : order) {
    place[old] = static_cast<uint32_t>(files.size());
    files.push_back(std::move(index.files[old]));
  }
  index.files = std::move(files);
  for (ShardIndex::Entry& entry : index.entries) entry.file = place[entry.file];
}

}  // namespace

std::string ShardFileName(size_t index, size_t count) {
  if (count == 1) return std::string(kModelFileName);
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& path, std::string_view text) {
  IndexHandler handler(path);
  if (absl::Status status = handler.Parse(text); !status.ok()) return status;
  absl::StatusOr<ShardIndex> index = handler.Take();
  if (index.ok()) SortFiles(*index);
  return index;
}

}  // namespace gpuledger
