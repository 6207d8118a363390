// carried_payer.h - the payer of whoever called backward(), on the threads that run it.
#pragma once

#include "gpuledger/types.h"

namespace gpuledger::pytorch {

// From now on a thread of PyTorch that works for another one (autograd's device threads, at::launch) and is in no scope of its own
// pays as that one does: CurrentPayer() there says so, whatever way in asks. PyTorch itself hands the payer over, with the other
// thread-local state that it carries. Idempotent, for the process and for good; called by each way in as it is installed.
// Cost: the first scope of a thread some ten nanoseconds more, an allocation on a thread without a scope some nanoseconds.
GPULEDGER_EXPORT void CarryPayers();

}  // namespace gpuledger::pytorch
