// quant/module_patterns.h - a list of modules not to convert, read as transformers 5.17 reads it.
#pragma once

#include <absl/container/flat_hash_set.h>
#include <absl/status/statusor.h>

#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace gpuledger {

// An entry matches a module whose name it ends, or whose name it begins when taken for a regular expression: "lm_head",
// "model.layers.0", "^model.layers.0.mlp.gate$", "model.layers.[0-3].*". In an entry without other special characters a
// dot is a dot. Immutable, thread-safe.
class ModulePatterns {
 public:
  // kInvalidArgument, naming the entry, for one that is no regular expression or too much of one.
  static absl::StatusOr<ModulePatterns> Of(const std::vector<std::string>& entries);

  [[nodiscard]] bool Match(std::string_view module) const;

 private:
  absl::flat_hash_set<std::string> beginnings_;
  absl::flat_hash_set<std::string> wholes_;
  absl::flat_hash_set<std::string> ends_;
  std::set<size_t> lengths_;  // that beginnings and ends have
  std::vector<std::regex> expressions_;
};

}  // namespace gpuledger
