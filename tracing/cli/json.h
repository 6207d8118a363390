// cli/json.h - the documented objects of --json (README.md here).
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "gpuledger/load.h"

namespace gpuledger::cli {

nlohmann::ordered_json PlanJson(const LoadPlan& plan);
nlohmann::ordered_json LoadJson(const LoadResult& result);
nlohmann::ordered_json ErrorJson(int exit_code, std::string_view message);
void PrintJson(const nlohmann::ordered_json& object);

}  // namespace gpuledger::cli
