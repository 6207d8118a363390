// tracing/c_settle_state.h - what is behind a gpuledger_settle_state.
#pragma once

#include "gpuledger/gpuledger_tracing.h"
#include "gpuledger/settle.h"

struct gpuledger_settle_state {
  gpuledger::Settle settle;
};
