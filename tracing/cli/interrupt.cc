#include "interrupt.h"

#include <csignal>
#include <initializer_list>

namespace gpuledger::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void OnSignal(int) { interrupted = 1; }

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction old = {};
    // What the shell told the program to ignore (nohup) stays ignored.
    if (sigaction(signal, nullptr, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

bool Interrupted() { return interrupted != 0; }

Progress ShowUntilInterrupted(ProgressBar& bar) {
  return [&bar](Bytes done, Bytes total) {
    bar.Update(done, total);
    return !Interrupted();
  };
}

}  // namespace gpuledger::cli
