#include "interrupt.h"

#include <csignal>
#include <ctime>
#include <initializer_list>

namespace gpuledger::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;
timespec first_at;  // when the first signal came

// A second one soon after is the same: `timeout` and terminals tell a process and its group. Later it means now.
void OnSignal(int signal) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (interrupted == 0) {
    first_at = now;
    interrupted = 1;
  } else if (now.tv_sec - first_at.tv_sec > 1) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
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
