// cli/interrupt.h - Ctrl-C asks long work to stop; a second one ends the program at once.
#pragma once

namespace gpuledger::cli {

// From now on SIGINT, SIGTERM and SIGHUP only set a flag, once each.
void CatchInterrupts();
// Whether one of them has come. Async-signal-safe, any thread.
bool Interrupted();

}  // namespace gpuledger::cli
