#include "plan_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "figures.h"
#include "gpuledger/layer_names.h"
#include "interrupt.h"

namespace gpuledger::cli {
namespace {

constexpr size_t kScreen = 40;  // lines

struct Row {
  std::string name;
  const PlannedWeight* weight;
  std::vector<std::string> layers;
  Bytes source, final_bytes;
};

std::vector<Row> Rows(const LoadPlan& plan, bool collapse) {
  std::vector<Row> rows;
  std::map<std::string, size_t> by_key;
  for (const PlannedWeight& w : plan.weights) {
    auto [pattern, layer] = SplitLayer(w.tensor.name);
    if (!collapse || layer.empty()) {
      rows.push_back({w.tensor.name, &w, {}, w.tensor.size, w.final_bytes});
      continue;
    }
    const std::string key = fmt::format("{} {} {} {} {}", pattern, Shape(w.tensor.shape), DtypeName(w.tensor.dtype),
                                        ActionName(w.action), w.reason);
    const auto [found, is_new] = by_key.emplace(key, rows.size());
    if (is_new) rows.push_back({pattern, &w, {}, Bytes(), Bytes()});
    Row& row = rows[found->second];
    row.layers.push_back(layer);
    row.source += w.tensor.size;
    row.final_bytes += w.final_bytes;
  }
  return rows;
}

// "nf4 in blocks of 64, double-quantized".
std::string FormatTitle(const FourBitFormat& format) {
  return fmt::format("{} in blocks of {}{}", QuantTypeName(format.type), format.block,
                     format.double_quant ? ", double-quantized" : "");
}

// A flag's value: "256KiB".
std::string FlagSize(Bytes size) {
  return size % Bytes(1u << 20) == Bytes() ? fmt::format("{}MiB", size / Bytes(1u << 20))
                                           : fmt::format("{}KiB", size / Bytes(1u << 10));
}

// The largest smaller ring with which it fits, and the least that any ring needs.
std::string WhatWouldHelp(const LoadPlan& plan) {
  Bytes least = plan.predicted_peak_bytes;
  for (const auto& [slots, size] : {std::pair(2u, 1u << 20), std::pair(2u, 256u << 10), std::pair(1u, 64u << 10)}) {
    LoadOptions options = plan.options;
    options.slots = slots;
    options.slot_size = Bytes(size);
    const absl::StatusOr<LoadPlan> smaller = PlanLoad(plan.source, options, plan.available, [](Bytes, Bytes) { return !Interrupted(); });
    if (!smaller.ok()) continue;
    if (smaller->fits) {
      return fmt::format("  What would help: --slots {} --slot-size {} has its peak at {} ({}), which fits.\n", slots,
                         FlagSize(Bytes(size)), Human(smaller->predicted_peak_bytes),
                         ToString(smaller->predicted_peak_bytes));
    }
    least = std::min(least, smaller->predicted_peak_bytes);
  }
  return fmt::format("  What would help: at least {} ({}); a smaller ring does not get under that.\n", Human(least),
                     ToString(least));
}

}  // namespace

std::string PlanTitle(const LoadPlan& plan, const Style& style) {
  const std::string name = plan.source->directory().empty()
                               ? plan.source->name()
                               : std::filesystem::path(plan.source->directory()).lexically_normal().string();
  if (plan.stored_4bit) {
    return fmt::format("{}: in 4 bit already; {} tensors are loaded as they are\n", style.Bold(name),
                       plan.weights.size());
  }
  return fmt::format("{}: {} of {} tensors become {}\n", style.Bold(name), plan.quantized_count(), plan.weights.size(),
                     FormatTitle(plan.options.format));
}

std::string PlanTable(const LoadPlan& plan, const Style& style, bool all) {
  const std::vector<Row> rows = Rows(plan, !all && plan.weights.size() > kScreen);
  std::vector<std::string> names;
  size_t name_width = 6, shape_width = 5;
  for (const Row& row : rows) {
    names.push_back(JoinLayers(row.name, row.layers));
    name_width = std::max(name_width, names.back().size());
    shape_width = std::max(shape_width, Shape(row.weight->tensor.shape).size());
  }
  std::string text = style.Dim(fmt::format("  {:<9} {:<{}}  {:<{}}  {:<5} {:>11} {:>11}  {}", "action", "weight",
                                           name_width, "shape", shape_width, "dtype", "source", "final", "reason")) +
                     "\n";
  for (size_t i = 0; i < rows.size(); ++i) {
    const PlannedWeight& w = *rows[i].weight;
    const std::string action = fmt::format("{:<9}", ActionName(w.action));
    text += fmt::format("  {} {:<{}}  {:<{}}  {:<5} {:>11} {:>11}  {}\n",
                        w.action == WeightAction::kQuantize ? style.Good(action) : action, names[i], name_width,
                        Shape(w.tensor.shape), shape_width, DtypeName(w.tensor.dtype), Human(rows[i].source),
                        Human(rows[i].final_bytes), w.reason);
  }
  if (rows.size() < plan.weights.size()) {
    text += style.Dim(fmt::format("  {} tensors; layers alike share a line, with their sum (--all for each)",
                                  plan.weights.size())) +
            "\n";
  }
  return text;
}

std::string PlanFigures(const LoadPlan& plan) {
  return Line("source", plan.source_bytes(), "to be read") + Line("final", plan.final_bytes) +
         Line("staging budget", plan.staging_budget_bytes,
              fmt::format("{} x {}", plan.options.slots, Human(plan.slot_size))) +
         (plan.scratch_size.is_zero() ? "" : Line("scratch", plan.scratch_size, "scales of the largest weight")) +
         Line("peak in use", plan.predicted_in_use_bytes, "predicted") +
         Line("peak reserved", plan.predicted_peak_bytes, "predicted; the load's cap");
}

std::string PlanVerdict(const LoadPlan& plan, const Style& style) {
  const Bytes limit = std::min(plan.options.cap, plan.available);
  const std::string what = plan.options.cap <= plan.available ? "cap" : "device's memory";
  if (plan.fits) {
    return fmt::format("  {} the {} of {}, with {} to spare\n", style.Good("Fits"), what, Human(limit),
                       Human(limit - plan.predicted_peak_bytes));
  }
  const Bytes missing = plan.predicted_peak_bytes - limit;
  return fmt::format("  {} the {} of {} ({}): {} ({}) short\n", style.Bad("Does not fit"), what, Human(limit),
                     ToString(limit), Human(missing), ToString(missing)) +
         WhatWouldHelp(plan);
}

}  // namespace gpuledger::cli
