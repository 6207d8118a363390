// cli/plan_text.h - a plan for people.
#pragma once

#include <string>

#include "gpuledger/plan.h"
#include "terminal.h"

namespace gpuledger::cli {

// "MODEL: 37 of 104 tensors become nf4 in blocks of 64".
std::string PlanTitle(const LoadPlan& plan, const Style& style);
// A line per weight; with `all` false, repeated layers share one if the table is longer than a screen.
std::string PlanTable(const LoadPlan& plan, const Style& style, bool all);
// Peak, budget, final.
std::string PlanFigures(const LoadPlan& plan);
// Whether it fits; if not, what would help (found by planning it).
std::string PlanVerdict(const LoadPlan& plan, const Style& style);

}  // namespace gpuledger::cli
