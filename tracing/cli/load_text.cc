#include "load_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "figures.h"
#include "plan_text.h"

namespace gpuledger::cli {
namespace {

constexpr size_t kFailuresShown = 12;

std::string Peak(std::string_view label, Bytes measured, Bytes predicted, const Style& style) {
  return Line(label, measured,
              measured == predicted ? style.Good("as predicted, to the byte")
                                    : style.Bad(fmt::format("predicted were {}", ToString(predicted))));
}

std::string Residual(const LoadResult& result) {
  const auto dirty = std::count_if(result.residuals.begin(), result.residuals.end(),
                                   [](const WeightResidual& r) { return !r.bytes.is_zero(); });
  if (result.residual_bytes.is_zero()) return fmt::format("0 B in each of {} weights", result.residuals.size());
  return fmt::format("{} left behind by {} of {} weights", ToString(result.residual_bytes), dirty,
                     result.residuals.size());
}

std::string Audit(const LoadPlan& plan, const LoadResult& result) {
  size_t planned = 0, quantized = 0, kept = 0, kept_as_planned = 0;
  for (size_t i = 0; i < result.audit.size(); ++i) {
    const bool as_planned = result.audit[i].planned == result.audit[i].actual;
    if (plan.weights[i].action == WeightAction::kQuantize) {
      planned += 1, quantized += as_planned;
    } else {
      kept += 1, kept_as_planned += as_planned;
    }
  }
  if (plan.stored_4bit) return fmt::format("{} of {} tensors are as in the file", kept_as_planned, kept);
  return fmt::format("{} of {} planned weights are {}; {} of {} others are as in the file", quantized, planned,
                     ToString(plan.options.format), kept_as_planned, kept);
}

}  // namespace

std::string LoadPromise(const LoadPlan& plan, const Style& style) {
  return PlanTitle(plan, style) + "\n" + Line("predicted peak", plan.predicted_peak_bytes, "reserved; the load's cap") +
         Line("staging budget", plan.staging_budget_bytes,
              fmt::format("{} x {}", plan.options.slots, Human(plan.slot_size))) +
         Line("final", plan.final_bytes) + "\n";
}

std::string LoadProof(const LoadPlan& plan, const LoadResult& result, const Style& style) {
  // Verdict, name, what was found.
  const auto assertion = [&](LoadAssertion which, const std::string& found) {
    return Line(AssertionName(which),
                fmt::format("{}  {}", result.holds(which) ? style.Good("ok    ") : style.Bad("FAILED"), found));
  };
  std::string text = plan.options.fault == LoadFault::kNone
                         ? Peak("peak reserved", result.peak_bytes, result.predicted_peak_bytes, style) +
                               Peak("peak in use", result.in_use_peak_bytes, result.predicted_in_use_bytes, style)
                         : Line("peak reserved", result.peak_bytes, "a fault was planted, so there was no cap");
  text += Line("final", result.final_bytes, "live in the weights' blocks") + "\n";
  text += assertion(LoadAssertion::kResidual, Residual(result));
  text += assertion(LoadAssertion::kStaging, fmt::format("{} at most, of {}", ToString(result.staging_peak_bytes),
                                                         ToString(result.staging_budget_bytes)));
  text += assertion(LoadAssertion::kAudit, Audit(plan, result));
  text += assertion(LoadAssertion::kOwnerless,
                    fmt::format("{} reserved without an owner", ToString(result.ownerless_bytes)));

  const size_t shown = std::min(result.failures.size(), kFailuresShown);
  if (shown > 0) text += "\n";
  for (size_t i = 0; i < shown; ++i) {
    const LoadFailure& failure = result.failures[i];
    text += fmt::format("  {} {}\n", style.Bad(fmt::format("{}:", AssertionName(failure.assertion))), failure.message);
  }
  if (shown < result.failures.size()) {
    text += fmt::format("  and {} more (--json lists them)\n", result.failures.size() - shown);
  }
  if (!result.errors.empty()) text += "\n" + VerifyTable(result, style);
  return text +
         fmt::format("\n  {} read in {:.2f} s, {:.2f} GB/s\n", Human(result.source_bytes), result.seconds,
                     result.seconds > 0 ? static_cast<double>(result.source_bytes.count()) / 1e9 / result.seconds : 0);
}

}  // namespace gpuledger::cli
