// cli/load_text.h - a load's promise and its proof, for people.
#pragma once

#include <string>

#include "gpuledger/load.h"
#include "terminal.h"

namespace gpuledger::cli {

// Before a byte is read.
std::string LoadPromise(const LoadPlan& plan, const Style& style);
// After: the peaks against the promise, the four assertions, what failed by name, speed.
std::string LoadProof(const LoadPlan& plan, const LoadResult& result, const Style& style);
// What --verify found: errors beside the format's expectation, outliers by name. Requires: result.errors is not empty.
std::string VerifyTable(const LoadResult& result, const Style& style);

}  // namespace gpuledger::cli
