#include "leak_lines.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include <fmt/format.h>

#include "gpuledger/layer_names.h"

namespace gpuledger {
namespace {

// A text whose layers are gathered: that of an owner, or of a holder.
struct Layered {
  std::string pattern;
  std::vector<std::string> layers;
  [[nodiscard]] std::string Joined() const { return layers.empty() ? pattern : JoinLayers(pattern, layers); }
};

Layered Split(const std::string& text) {
  auto [pattern, layer] = SplitLayer(text);
  if (layer.empty()) return {text, {}};
  return {std::move(pattern), {std::move(layer)}};
}

void Gather(Layered& into, const Layered& one) { into.layers.insert(into.layers.end(), one.layers.begin(), one.layers.end()); }

std::string KeyOf(const std::vector<TraceFrame>& stack) {
  std::string key;
  for (const TraceFrame& f : stack) key += fmt::format("{}\n{}\n{}\n{}\n", f.function, f.file, f.line, f.offset);
  return key;
}

struct Line {
  LeakGroup group;
  Layered owner;
  std::vector<Layered> holders;
};

}  // namespace

std::vector<LeakGroup> OverLayers(const std::vector<LeakGroup>& groups) {
  std::map<std::tuple<LeakClass, Severity, Role, std::string, std::string, std::string, std::string, std::vector<std::string>>, Line> lines;
  for (const LeakGroup& g : groups) {
    const Layered owner = Split(g.owner);
    std::vector<Layered> holders;
    std::vector<std::string> patterns;
    for (const std::string& holder : g.holders) patterns.push_back(holders.emplace_back(Split(holder)).pattern);
    const auto [at, fresh] = lines.try_emplace({g.leak_class, g.severity, g.role, owner.pattern, g.tensor, g.suppressed_by, KeyOf(g.stack), patterns});
    Line& line = at->second;
    if (fresh) {
      line = {g, owner, holders};
      continue;
    }
    line.group.bytes += g.bytes;
    line.group.count += g.count;
    line.group.oldest_age_ns = std::max(line.group.oldest_age_ns, g.oldest_age_ns);
    Gather(line.owner, owner);
    for (size_t i = 0; i < holders.size(); ++i) Gather(line.holders[i], holders[i]);
  }
  std::vector<LeakGroup> shown;
  for (auto& [key, line] : lines) {
    line.group.owner = line.owner.Joined();
    for (size_t i = 0; i < line.holders.size(); ++i) line.group.holders[i] = line.holders[i].Joined();
    shown.push_back(std::move(line.group));
  }
  std::stable_sort(shown.begin(), shown.end(), [](const LeakGroup& a, const LeakGroup& b) {
    return std::tuple(b.severity, b.bytes) < std::tuple(a.severity, a.bytes);
  });
  return shown;
}

std::vector<PeakShare> OverLayers(const std::vector<PeakShare>& shares) {
  std::map<std::pair<std::string, Role>, std::pair<Layered, PeakShare>> lines;
  for (const PeakShare& s : shares) {
    const Layered owner = Split(s.owner);
    const auto [at, fresh] = lines.try_emplace({owner.pattern, s.role}, owner, s);
    if (fresh) continue;
    Gather(at->second.first, owner);
    at->second.second.bytes += s.bytes;
    at->second.second.count += s.count;
  }
  std::vector<PeakShare> shown;
  for (auto& [key, line] : lines) {
    line.second.owner = line.first.Joined();
    shown.push_back(std::move(line.second));
  }
  std::stable_sort(shown.begin(), shown.end(), [](const PeakShare& a, const PeakShare& b) { return a.bytes > b.bytes; });
  return shown;
}

}  // namespace gpuledger
