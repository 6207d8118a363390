// What closed lineages left behind, and who holds it.
#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "gpuledger/layer_names.h"
#include "gpuledger/process.h"
#include "gpuledger/torch.h"

namespace gpuledger::pytorch {
namespace {

struct Left {
  std::string weight;  // or the pattern of several
  std::vector<std::string> layers;
  Bytes bytes;
  uint64_t storages = 0;  // watched and alive
  HolderCounts holders;
};

// Of all allocators; a weight that is left on two devices counts once.
std::vector<Left> Collect() {
  std::vector<Left> all;
  std::map<OwnerId, size_t> by_weight;
  ForEachAllocator([&](CachingAllocator& allocator) {
    for (const Residual& residual : allocator.ledger().residuals()) {
      const auto [found, is_new] = by_weight.emplace(residual.weight, all.size());
      if (is_new) all.push_back({std::string(OwnerName(residual.weight)), {}, Bytes(), 0, {}});
      all[found->second].bytes += residual.bytes;
    }
  });
  for (const auto& [weight, index] : by_weight) {
    Left& left = all[index];
    for (const WatchedStorage& storage : Holders(weight)) {
      if (storage.size.is_zero()) continue;  // its bytes are gone
      ++left.storages;
      left.holders += storage.holders;
    }
  }
  return all;
}

uint64_t OpenLineages() {
  uint64_t open = 0;
  ForEachAllocator([&open](const CachingAllocator& allocator) { open += allocator.ledger().open_lineages(); });
  return open;
}

// Weights with the same bytes and holders, alike but for their layer, as one; the order stays that of the first of each.
std::vector<Left> Collapse(const std::vector<Left>& all) {
  std::vector<Left> groups;
  std::map<std::string, size_t> by_key;
  for (const Left& left : all) {
    auto [pattern, layer] = SplitLayer(left.weight);
    const std::string key = fmt::format("{} {} {} {}", pattern, left.bytes.count(), left.storages, Describe(left.holders));
    const auto [found, is_new] = by_key.emplace(layer.empty() ? left.weight : key, groups.size());
    if (is_new) groups.push_back({pattern, {}, left.bytes, left.storages, left.holders});
    if (!layer.empty()) groups[found->second].layers.push_back(layer);
  }
  return groups;
}

std::string Mebibytes(Bytes bytes) {
  return fmt::format("{:.2f} MiB", static_cast<double>(bytes.count()) / (1024.0 * 1024.0));
}

// Counted from outside: a handle that a caller of Consume would keep for itself is one of them.
std::string Count(const HolderCounts& holders) {
  return fmt::format("{} {}", holders.total(), holders.total() == 1 ? "holder" : "holders");
}

}  // namespace

std::string ResidualReport(const ResidualReportOptions& options) {
  const std::vector<Left> all = Collect();
  const auto paint = [&](std::string_view code, std::string_view text) {
    return options.colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  };
  std::string out;
  if (const uint64_t open = OpenLineages(); open > 0) {
    out +=
        fmt::format("{} {} still being quantized: not the last word.\n", open, open == 1 ? "weight is" : "weights are");
  }
  if (all.empty()) return out + paint("32", "No weight left source or staging bytes behind.") + "\n";

  Bytes total;
  HolderCounts holders;
  size_t width = 0;
  const std::vector<Left> lines = options.collapse ? Collapse(all) : all;
  const size_t shown = std::min<size_t>(options.weights, lines.size());
  for (const Left& left : all) {
    total += left.bytes;
    holders += left.holders;
  }
  for (size_t i = 0; i < shown; ++i) width = std::max(width, JoinLayers(lines[i].weight, lines[i].layers).size());

  out += paint("1;31", fmt::format("{} quantized, but {} source is still resident: {} ({}).",
                                   all.size() == 1 ? "1 weight is" : fmt::format("{} weights are", all.size()),
                                   all.size() == 1 ? "its" : "their", ToString(total), Mebibytes(total)));
  out += "\n\n";
  Bytes hidden = total;
  size_t more = all.size();
  for (size_t i = 0; i < shown; ++i) {
    const Left& left = lines[i];
    const size_t times = std::max<size_t>(1, left.layers.size());
    hidden -= left.bytes * times;
    more -= times;
    const std::string name = paint("1", fmt::format("{:<{}}", JoinLayers(left.weight, left.layers), width));
    const std::string size = (times == 1 ? "" : fmt::format("{} x ", times)) + ToString(left.bytes);
    if (left.storages == 0) {
      out += fmt::format("  {}  {:>17}   holders unknown: its source was not watched\n", name, size);
    } else {
      out += fmt::format("  {}  {:>17}   {}{}\n      {}\n", name, size, Count(left.holders), times == 1 ? "" : " each",
                         Describe(left.holders));
    }
  }
  if (more > 0) out += fmt::format("  ... and {} more {} with {}\n", more, more == 1 ? "weight" : "weights", ToString(hidden));
  out += fmt::format("\n  total: {} {}, {}, {}\n      {}\n", all.size(), all.size() == 1 ? "weight" : "weights",
                     ToString(total), Count(holders), Describe(holders));
  out += paint("2",
               "  handle: an at::Tensor in a local, a container or a suspended frame, or one that autograd saved;\n"
               "  other tensor: a view, detach() or a Parameter\n");
  return out;
}

}  // namespace gpuledger::pytorch
