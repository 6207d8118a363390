#include "gpuledger/layer_names.h"

#include <algorithm>

#include <fmt/format.h>

namespace gpuledger {

std::pair<std::string, std::string> SplitLayer(std::string_view name) {
  for (size_t at = 0; at < name.size();) {
    const size_t end = std::min(name.find('.', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (!part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos) {
      return {fmt::format("{}{{}}{}", name.substr(0, at), name.substr(end)), std::string(part)};
    }
    at = end + 1;
  }
  return {std::string(name), ""};
}

std::string JoinLayers(std::string_view pattern, const std::vector<std::string>& layers) {
  const size_t at = pattern.find("{}");
  if (at == std::string_view::npos || layers.empty()) return std::string(pattern);
  std::vector<uint64_t> numbers;
  for (const std::string& layer : layers) numbers.push_back(layer.size() < 19 ? std::stoull(layer) : UINT64_MAX);
  std::sort(numbers.begin(), numbers.end());
  std::string ranges;
  for (size_t from = 0, to = 0; from < numbers.size(); from = to = to + 1) {
    while (to + 1 < numbers.size() && numbers[to + 1] - numbers[to] <= 1) ++to;
    if (!ranges.empty()) ranges += ",";
    ranges += numbers[to] == numbers[from] ? fmt::format("{}", numbers[from]) : fmt::format("{}-{}", numbers[from], numbers[to]);
  }
  if (ranges.find_first_of(",-") != std::string::npos) ranges = "{" + ranges + "}";
  return fmt::format("{}{}{}", pattern.substr(0, at), ranges, pattern.substr(at + 2));
}

}  // namespace gpuledger
