#include <fmt/format.h>

#include "commands.h"
#include "gpuledger/host_upstream.h"
#include "interrupt.h"
#include "json.h"
#include "plan_text.h"

namespace gpuledger::cli {

ExitCode RunPlan(const PlanFlags& flags) {
  const absl::StatusOr<LoadOptions> options = OptionsFrom(flags);
  if (!options.ok()) return Fail(options.status(), flags.json);
  absl::StatusOr<std::shared_ptr<const ModelSource>> source = SourceFrom(flags);
  if (!source.ok()) return Fail(source.status(), flags.json);
  const absl::StatusOr<LoadPlan> plan =
      [&] {
        ProgressBar bar("planning");
        return PlanLoad(*std::move(source), *options, HostAnonymousUpstream().memory_info().free,
                        ShowUntilInterrupted(bar));
      }();
  if (!plan.ok()) return Fail(plan.status(), flags.json);

  std::FILE* const out = flags.json ? stderr : stdout;
  const Style style(out);
  fmt::print(out, "{}\n{}\n{}\n{}", PlanTitle(*plan, style), PlanTable(*plan, style, flags.all), PlanFigures(*plan),
             PlanVerdict(*plan, style));
  if (flags.json) PrintJson(PlanJson(*plan));
  return plan->fits ? ExitCode::kFine : ExitCode::kOutOfMemory;
}

}  // namespace gpuledger::cli
