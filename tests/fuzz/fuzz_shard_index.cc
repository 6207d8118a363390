// model.safetensors.index.json: refused, or every tensor once, each in a file that cannot lead out of the directory.
#include <set>
#include <string>

#include "fuzz_files.h"
#include "shard_index.h"

using namespace gpuledger;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::StatusOr<ShardIndex> index = ParseShardIndex("index.json", TextOf(data, size));
  if (!index.ok()) {
    Ensure(index.status().code() == absl::StatusCode::kInvalidArgument && index.status().message().size() < 3000);
    return 0;
  }
  std::set<std::string> names;
  for (const ShardIndex::Entry& entry : index->entries) {
    Ensure(entry.file < index->files.size() && names.insert(entry.tensor).second);
  }
  for (size_t i = 0; i < index->files.size(); ++i) {
    const std::string& file = index->files[i];
    Ensure(file.find('/') == file.npos && file.find('\0') == file.npos && file.ends_with(".safetensors"));
    Ensure(i == 0 || index->files[i - 1] < file);
  }
  return 0;
}
