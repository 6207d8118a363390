#include "module_patterns.h"

#include <absl/strings/string_view.h>
#include <fmt/format.h>

#include <algorithm>

namespace gpuledger {
namespace {

// The standard library's automaton that does not backtrack: its time is states times characters. The limits keep what a
// hostile list can cost small; counted repetitions would multiply the states.
constexpr auto kSyntax = std::regex::ECMAScript | std::regex_constants::__polynomial;
constexpr size_t kMostExpressions = 32;
constexpr size_t kLongestExpression = 256;
constexpr size_t kLongestModule = 1024;  // longer names match no expression

bool IsPlain(std::string_view entry) {
  return std::all_of(entry.begin(), entry.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  });
}

// Abseil's set is looked up with Abseil's view.
bool Has(const absl::flat_hash_set<std::string>& set, std::string_view text) {
  return set.contains(absl::string_view(text.data(), text.size()));
}

absl::Status Unusable(std::string_view entry, std::string_view why) {
  return absl::InvalidArgumentError(
      fmt::format("config.json: llm_int8_skip_modules: \"{}\" {}; list the modules by their names",
                  entry.substr(0, kLongestExpression), why));
}

}  // namespace

absl::StatusOr<ModulePatterns> ModulePatterns::Of(const std::vector<std::string>& entries) {
  ModulePatterns patterns;
  for (const std::string& entry : entries) {
    std::string_view plain = entry;
    const bool begins = plain.starts_with('^');
    if (begins) plain.remove_prefix(1);
    const bool ends = plain.ends_with('$');
    if (ends) plain.remove_suffix(1);
    if (IsPlain(plain)) {
      // With an anchor the entry is no end of any name.
      (ends ? patterns.wholes_ : patterns.beginnings_).emplace(plain);
      if (!ends && !begins) patterns.ends_.emplace(plain);
      if (!ends) patterns.lengths_.insert(plain.size());
      continue;
    }
    if (patterns.expressions_.size() == kMostExpressions) return Unusable(entry, "is one regular expression too many");
    if (entry.size() > kLongestExpression) return Unusable(entry, "is too long for a regular expression");
    if (entry.find('{') != entry.npos) return Unusable(entry, "counts repetitions");
    try {
      patterns.expressions_.emplace_back(entry, kSyntax);
    } catch (const std::regex_error&) {
      return Unusable(entry, "is no regular expression that can be used");
    }
    // Transformers looks for the entry's text at the end too.
    patterns.ends_.insert(entry);
    patterns.lengths_.insert(entry.size());
  }
  return patterns;
}

bool ModulePatterns::Match(std::string_view module) const {
  if (Has(wholes_, module)) return true;
  for (const size_t length : lengths_) {
    if (length > module.size()) break;
    if (Has(beginnings_, module.substr(0, length))) return true;
    if (Has(ends_, module.substr(module.size() - length))) return true;
  }
  if (module.size() > kLongestModule) return false;
  return std::any_of(expressions_.begin(), expressions_.end(), [&](const std::regex& expression) {
    return std::regex_search(module.begin(), module.end(), expression, std::regex_constants::match_continuous);
  });
}

}  // namespace gpuledger
