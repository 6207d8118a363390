#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "gpuledger/layer_names.h"
#include "load_text.h"

namespace gpuledger::cli {
namespace {

constexpr size_t kOutliersShown = 12;

// Weights that differ only in their layer, on one line: the largest error, the mean of the means.
struct Group {
  std::string pattern;
  std::vector<std::string> layers;
  double max = 0, relative = 0;
  size_t weights = 0;
};

std::vector<Group> Groups(const std::vector<WeightError>& errors) {
  std::vector<Group> groups;
  std::map<std::string, size_t> by_pattern;
  for (const WeightError& error : errors) {
    auto [pattern, layer] = SplitLayer(error.name);
    const auto [found, is_new] = by_pattern.emplace(pattern, groups.size());
    if (is_new) groups.push_back({pattern, {}});
    Group& group = groups[found->second];
    if (!layer.empty()) group.layers.push_back(layer);
    group.max = std::max(group.max, error.max);
    group.relative += error.relative();
    group.weights += 1;
  }
  return groups;
}

}  // namespace

std::string VerifyTable(const LoadResult& result, const Style& style) {
  const std::vector<Group> groups = Groups(result.errors);
  size_t width = 6;
  std::vector<std::string> names;
  for (const Group& group : groups) {
    names.push_back(JoinLayers(group.pattern, group.layers));
    width = std::max(width, names.back().size());
  }
  const double expected = result.errors.front().expected;
  std::string text = style.Dim(fmt::format("  {:<{}}  {:>11}  {:>16}  {:>12}", "weight", width, "max error",
                                           "mean error / rms", "expected")) +
                     "\n";
  for (size_t i = 0; i < groups.size(); ++i) {
    text += fmt::format("  {:<{}}  {:>11.4g}  {:>16.4f}  {:>12.4f}\n", names[i], width, groups[i].max,
                        groups[i].relative / static_cast<double>(groups[i].weights), expected);
  }

  std::vector<WeightError> outliers;
  std::copy_if(result.errors.begin(), result.errors.end(), std::back_inserter(outliers),
               [](const WeightError& error) { return error.outlier; });
  if (outliers.empty()) return text + style.Good("  no outliers") + "\n";
  std::sort(outliers.begin(), outliers.end(),
            [](const WeightError& a, const WeightError& b) { return a.relative() > b.relative(); });
  text += style.Bad(fmt::format("  {} outliers", outliers.size())) + ": far above the expectation, or not finite\n";
  for (size_t i = 0; i < std::min(outliers.size(), kOutliersShown); ++i) {
    const WeightError& error = outliers[i];
    text += fmt::format("    {}  max error {:.4g}, mean / rms {:.4f}{}\n", error.name, error.max, error.relative(),
                        error.not_finite + error.destroyed == 0
                            ? ""
                            : fmt::format(", {} values are not finite, {} others are not any more", error.not_finite,
                                          error.destroyed));
  }
  if (outliers.size() > kOutliersShown) {
    text += fmt::format("    and {} more (--json lists them)\n", outliers.size() - kOutliersShown);
  }
  return text;
}

}  // namespace gpuledger::cli
