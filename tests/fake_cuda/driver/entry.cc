#include "entry.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "capture.h"
#include "driver.h"
#include "driver_functions.h"
#include "misuse.h"
#include "pool.h"

namespace fake_cuda {
namespace {

std::atomic<bool> initialised{false};
std::atomic<bool> forked{false};  // this is a child of the process that initialised the library
int trace_file = -1;
thread_local Call* current_call = nullptr;

std::atomic<bool> any_faults{false};

std::vector<Fault>& faults() {
  static auto* const instance = new std::vector<Fault>;
  return *instance;
}

void SetFaults(std::vector<Fault> all) {
  faults() = std::move(all);
  any_faults = !faults().empty();
}

// Calls so far, as kSymbols counts.
std::atomic<uint64_t>* calls() {
  static auto* const instance = new std::vector<std::atomic<uint64_t>>(kSymbolCount);
  return instance->data();
}

// By the name that programs write, which may have several forms.
uint64_t CallsOf(std::string_view base) {
  uint64_t count = 0;
  for (unsigned i = 0; i < kSymbolCount; ++i) {
    if (base == kSymbols[i].base) count += calls()[i];
  }
  return count;
}

void Spin(const Symbol& symbol) {
  const std::map<std::string, uint64_t>& latency = driver().options.latency_ns;
  if (latency.empty()) return;
  const auto found = latency.find(symbol.base);
  if (found == latency.end()) return;
  const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(found->second);
  while (std::chrono::steady_clock::now() < until) {
  }
}

void Say(const std::string& sentence) {
  const std::string line = "fake CUDA: " + sentence + "\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

// What is to happen to a function that does not exist would never happen.
bool CheckName(const std::string& function, const char* where) {
  if (KnownFunction(function)) return true;
  Say(fmt::format("{} in the {} is no function of the driver", function, where));
  return false;
}

bool CheckNames(const std::vector<Fault>& faults) {
  return std::all_of(faults.begin(), faults.end(),
                     [](const Fault& fault) { return CheckName(fault.function, "faults"); });
}

bool CheckNames(const Options& options) {
  for (const auto& [function, ns] : options.latency_ns) {
    if (!CheckName(function, "latencies")) return false;
  }
  return CheckNames(options.faults);
}

CUresult Stop(bool abort, CUresult error, const std::string& sentence) {
  if (!abort) return error;
  Say(fmt::format("{}: {}", Call::current() != nullptr ? Call::current()->symbol().name : "?", sentence));
  std::abort();
}

}  // namespace

Call::Call(const Symbol& symbol) : symbol_(symbol), outer_(current_call) {
  if (symbol.is(kEarly)) {
    if (forked && std::string_view(symbol.base) == "cuInit") {
      result_ = CUDA_ERROR_NOT_INITIALIZED;
      return;
    }
    if (forked) return;  // in the child another thread may have left the mutex locked
  } else if (forked || !initialised) {
    result_ = CUDA_ERROR_NOT_INITIALIZED;
    return;
  } else {
    Spin(symbol);
    if (symbol.is(kThreadOnly) && !any_faults) {
      calls()[&symbol - kSymbols].fetch_add(1, std::memory_order_relaxed);
      return;
    }
  }
  lock_ = std::unique_lock(driver().mutex);
  current_call = this;
  result_ = Admit();
}

Call::~Call() {
  if (lock_.owns_lock()) current_call = outer_;
}

CUresult Call::Admit() {
  if (initialised) {
    calls()[&symbol_ - kSymbols].fetch_add(1, std::memory_order_relaxed);
    for (const Fault& fault : faults()) {
      if (fault.function == symbol_.base && fault.Hits(CallsOf(symbol_.base))) return CUresult(fault.error);
    }
  }
  return symbol_.is(kUnsafeInCapture) ? RefuseInCapture() : CUDA_SUCCESS;
}

Call* Call::current() { return current_call; }
bool Call::traced() const { return trace_file >= 0; }

void Call::Trace(CUresult result, const std::string& arguments) {
  const std::string line = fmt::format("{} {} {} -> {}\n", gettid(), symbol_.name, arguments, int(result));
  [[maybe_unused]] const ssize_t written = write(trace_file, line.data(), line.size());  // whole: O_APPEND
}

Unlocked::Unlocked() { Call::current()->lock_.unlock(); }
Unlocked::~Unlocked() { Call::current()->lock_.lock(); }

bool Initialised() { return initialised; }

CUresult Initialise() {
  if (initialised) return CUDA_SUCCESS;
  Driver& state = driver();
  Options options;
  std::string problem;
  if (!Options::Read(options, problem)) {
    Say(problem);
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!CheckNames(options)) return CUDA_ERROR_INVALID_VALUE;
  if (!options.trace.empty()) {
    trace_file = open(options.trace.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace_file < 0) {
      Say(fmt::format("FAKE_CUDA_TRACE: {} cannot be written", options.trace));
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  for (const Fault& fault : options.faults) {
    if (fault.function == "cuInit" && fault.Hits(1)) return CUresult(fault.error);
  }
  if (options.devices == 0) return CUDA_ERROR_NO_DEVICE;
  state.options = options;
  SetFaults(options.faults);
  if (options.hold_events) state.held.Hold();
  for (int i = 0; i < options.devices; ++i) {
    state.devices.push_back(std::make_unique<Device>(i, options.memory));
    MakeDefaultPool(*state.devices.back());
  }
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  initialised = true;
  return CUDA_SUCCESS;
}

std::string Shown(uint64_t value) {
  constexpr uint64_t kFirstAddress = uint64_t{1} << 44;  // what is larger is rather an address than a size
  return value < kFirstAddress ? fmt::format("{}", value) : fmt::format("{:#x}", value);
}

std::string ShownAddress(const void* address) { return fmt::format("{:#x}", reinterpret_cast<uintptr_t>(address)); }

CUresult Misuse(CUresult error, const std::string& sentence) {
  return Stop(driver().options.misuse_aborts, error, sentence);
}

CUresult CaptureMisuse(CUresult error, const std::string& sentence) {
  return Stop(driver().options.capture_misuse_aborts, error, sentence);
}

int Unsupported(const Symbol& symbol) {
  return Enter(symbol, [] { return CUDA_ERROR_NOT_SUPPORTED; });
}

uint64_t CallCount(const char* base) {
  const std::lock_guard lock(driver().mutex);
  return CallsOf(base);
}

bool AddFaults(const char* text) {
  const std::lock_guard lock(driver().mutex);
  std::string problem;
  std::vector<Fault> added;
  if (!ParseFaults(text, added, problem)) return Say("the text " + problem), false;
  if (!CheckNames(added)) return false;
  for (Fault& fault : added) fault.call += fault.when == Fault::When::kEvery ? 0 : CallsOf(fault.function);
  std::vector<Fault> all = faults();
  all.insert(all.end(), added.begin(), added.end());
  SetFaults(std::move(all));
  return true;
}

void ClearFaults() {
  const std::lock_guard lock(driver().mutex);
  SetFaults({});
}

}  // namespace fake_cuda
