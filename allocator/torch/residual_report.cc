// What closed lineages left behind, and who holds it.
#include <algorithm>

#include <fmt/format.h>

#include "gpuledger/torch.h"

namespace gpuledger::pytorch {
namespace {

struct Left {
  std::string_view weight;
  Bytes bytes;
  uint64_t storages = 0;  // watched and alive
  HolderCounts holders;
};

std::vector<Left> Collect(const Ledger& ledger) {
  std::vector<Left> all;
  for (const Residual& residual : ledger.residuals()) {
    Left left{OwnerName(residual.weight), residual.bytes, 0, {}};
    for (const WatchedStorage& storage : Holders(residual.weight)) {
      if (storage.size.is_zero()) continue;  // its bytes are gone
      ++left.storages;
      left.holders += storage.holders;
    }
    all.push_back(left);
  }
  return all;
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
  const Ledger& ledger = CpuAllocator()->ledger();
  const std::vector<Left> all = Collect(ledger);
  const auto paint = [&](std::string_view code, std::string_view text) {
    return options.colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  };
  std::string out;
  if (const uint64_t open = ledger.open_lineages(); open > 0) {
    out +=
        fmt::format("{} {} still being quantized: not the last word.\n", open, open == 1 ? "weight is" : "weights are");
  }
  if (all.empty()) return out + paint("32", "No weight left source or staging bytes behind.") + "\n";

  Bytes total;
  HolderCounts holders;
  size_t width = 0;
  const size_t shown = std::min<size_t>(options.weights, all.size());
  for (const Left& left : all) {
    total += left.bytes;
    holders += left.holders;
  }
  for (size_t i = 0; i < shown; ++i) width = std::max(width, all[i].weight.size());

  out += paint("1;31", fmt::format("{} quantized, but {} source is still resident: {} ({}).",
                                   all.size() == 1 ? "1 weight is" : fmt::format("{} weights are", all.size()),
                                   all.size() == 1 ? "its" : "their", ToString(total), Mebibytes(total)));
  out += "\n\n";
  Bytes hidden = total;
  for (size_t i = 0; i < shown; ++i) {
    const Left& left = all[i];
    hidden -= left.bytes;
    const std::string name = paint("1", fmt::format("{:<{}}", left.weight, width));
    if (left.storages == 0) {
      out += fmt::format("  {}  {:>13}   holders unknown: its source was not watched\n", name, ToString(left.bytes));
    } else {
      out += fmt::format("  {}  {:>13}   {}\n      {}\n", name, ToString(left.bytes), Count(left.holders),
                         Describe(left.holders));
    }
  }
  if (shown < all.size()) {
    const size_t more = all.size() - shown;
    out += fmt::format("  ... and {} more {} with {}\n", more, more == 1 ? "weight" : "weights", ToString(hidden));
  }
  out += fmt::format("\n  total: {} {}, {}, {}\n      {}\n", all.size(), all.size() == 1 ? "weight" : "weights",
                     ToString(total), Count(holders), Describe(holders));
  out += paint("2",
               "  handle: an at::Tensor in a local, a container or a suspended frame, or one that autograd saved;\n"
               "  other tensor: a view, detach() or a Parameter\n");
  return out;
}

}  // namespace gpuledger::pytorch
