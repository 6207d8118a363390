// cli/interrupt.h - Ctrl-C asks long work to stop; a second one ends the program at once.
#pragma once

#include "gpuledger/progress.h"
#include "terminal.h"

namespace gpuledger::cli {

// From now on SIGINT, SIGTERM and SIGHUP only set a flag; another one over a second later ends the program.
void CatchInterrupts();
// Whether one of them has come. Async-signal-safe, any thread.
bool Interrupted();
// Draws on `bar`, which must outlive it, and says stop once Interrupted.
Progress ShowUntilInterrupted(ProgressBar& bar);

}  // namespace gpuledger::cli
