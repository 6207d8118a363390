// tracing/redact.h - a report without paths and names: the same name is the same word throughout, and tells nothing.
#pragma once

#include "gpuledger/leak_report.h"

namespace gpuledger {

void Redact(LeakReport* report);

}  // namespace gpuledger
