#include "json.h"

#include <fmt/format.h>

#include <cstdio>

namespace gpuledger::cli {

using nlohmann::ordered_json;

ordered_json PlanJson(const LoadPlan& plan) {
  ordered_json weights = ordered_json::array();
  for (const PlannedWeight& w : plan.weights) {
    weights.push_back({{"name", w.tensor.name},
                       {"action", ActionName(w.action)},
                       {"reason", w.reason},
                       {"shape", w.tensor.shape},
                       {"dtype", DtypeName(w.tensor.dtype)},
                       {"source_bytes", w.tensor.size.count()},
                       {"final_bytes", w.final_bytes.count()}});
  }
  return {{"model", plan.source->name()},
          {"format", ToString(plan.options.format)},
          {"weights", std::move(weights)},
          {"source_bytes", plan.source_bytes().count()},
          {"final_bytes", plan.final_bytes.count()},
          {"predicted_peak_bytes", plan.predicted_peak_bytes.count()},
          {"predicted_in_use_bytes", plan.predicted_in_use_bytes.count()},
          {"staging_budget_bytes", plan.staging_budget_bytes.count()},
          {"slots", plan.options.slots},
          {"slot_size_bytes", plan.slot_size.count()},
          {"scratch_bytes", plan.scratch_size.count()},
          {"available_bytes", plan.available.count()},
          {"fits", plan.fits}};
}

ordered_json LoadJson(const LoadResult& result) {
  ordered_json audit = ordered_json::array();
  for (const AuditEntry& entry : result.audit) {
    audit.push_back({{"name", entry.name}, {"planned", entry.planned}, {"actual", entry.actual}});
  }
  ordered_json residuals = ordered_json::array();
  for (const WeightResidual& residual : result.residuals) {
    residuals.push_back({{"name", residual.name}, {"bytes", residual.bytes.count()}});
  }
  ordered_json errors = ordered_json::array();
  for (const WeightError& error : result.errors) {
    errors.push_back({{"name", error.name},
                      {"max_error", error.max},
                      {"mean_error", error.mean},
                      {"rms", error.rms},
                      {"relative", error.relative()},
                      {"expected", error.expected},
                      {"not_finite", error.not_finite},
                      {"destroyed", error.destroyed},
                      {"outlier", error.outlier}});
  }
  ordered_json failures = ordered_json::array();
  for (const LoadFailure& failure : result.failures) {
    failures.push_back({{"assertion", AssertionName(failure.assertion)},
                        {"weight", failure.weight},
                        {"bytes", failure.bytes.count()},
                        {"message", failure.message}});
  }
  ordered_json assertions;
  for (const LoadAssertion a :
       {LoadAssertion::kResidual, LoadAssertion::kStaging, LoadAssertion::kAudit, LoadAssertion::kOwnerless}) {
    assertions[std::string(AssertionName(a))] = result.holds(a);
  }
  return {{"predicted_peak_bytes", result.predicted_peak_bytes.count()},
          {"peak_bytes", result.peak_bytes.count()},
          {"predicted_in_use_bytes", result.predicted_in_use_bytes.count()},
          {"in_use_peak_bytes", result.in_use_peak_bytes.count()},
          {"final_bytes", result.final_bytes.count()},
          {"staging_peak_bytes", result.staging_peak_bytes.count()},
          {"staging_budget_bytes", result.staging_budget_bytes.count()},
          {"residual_bytes", result.residual_bytes.count()},
          {"ownerless_bytes", result.ownerless_bytes.count()},
          {"source_bytes", result.source_bytes.count()},
          {"seconds", result.seconds},
          {"assertions", std::move(assertions)},
          {"failures", std::move(failures)},
          {"residuals", std::move(residuals)},
          {"errors", std::move(errors)},
          {"audit", std::move(audit)}};
}

ordered_json ErrorJson(int exit_code, std::string_view message) {
  return {{"error", message}, {"exit_code", exit_code}};
}

void PrintJson(const ordered_json& object) {
  fmt::print("{}\n", object.dump(2, ' ', false, ordered_json::error_handler_t::replace));
}

}  // namespace gpuledger::cli
