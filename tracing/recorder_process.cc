// The recorder that serves the whole process: from the environment or on demand, through forks, to the end.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <vector>
#include <system_error>

#include <fmt/format.h>

#include "gpuledger/allocator.h"
#include "gpuledger/process.h"
#include "recorder_impl.h"

namespace gpuledger {
namespace {

std::atomic<Recorder*> of_process{nullptr};
std::mutex& StartMutex() {
  static auto& mutex = *new std::mutex;
  return mutex;
}

// Writes through to the recorder; in a forked child, the first entry makes its file.
class ProcessSink final : public RecordSink {
 public:
  void Write(const Record& record) noexcept override {
    if (Recorder* const recorder = Current()) recorder->Write(record);
  }
  void ScopeEnded(ScopeId scope) noexcept override {
    if (Recorder* const recorder = Current()) recorder->ScopeEnded(scope);
  }

  Recorder* Current() noexcept {
    Recorder* const recorder = of_process.load(std::memory_order_acquire);
    return recorder != nullptr || !forked.load(std::memory_order_relaxed) ? recorder : StartInChild();
  }
  std::atomic<bool> forked{false};
  RecorderOptions options;

 private:
  Recorder* StartInChild() noexcept;
};

ProcessSink& Sink() {
  static auto& sink = *new ProcessSink;
  return sink;
}

void Say(const absl::Status& status) {
  std::fputs(fmt::format("gpuledger: {}; nothing is recorded\n", std::string(status.message())).c_str(), stderr);
}

// Recorders that have ended, or that a fork left behind: threads may be inside, so they are not destroyed, and known here.
void Keep(const Recorder* recorder) {
  static auto& kept = *new std::vector<const Recorder*>;
  kept.push_back(recorder);
}

void AtExit() {
  if (Recorder* const recorder = of_process.exchange(nullptr)) {
    recorder->End();
    Keep(recorder);
  }
}

// In the child there is one thread, and the parent's file is not mapped: all that is left of its recorder is abandoned.
void AfterForkInChild() {
  new (&StartMutex()) std::mutex;
  if (const Recorder* const parents = of_process.exchange(nullptr)) {
    Keep(parents);
    Sink().forked.store(true);
  }
}

// Its file is made, and entries come in.
absl::StatusOr<Recorder*> Publish(const RecorderOptions& options) {
  absl::StatusOr<std::unique_ptr<Recorder>> recorder = Recorder::Prepare(options);
  if (!recorder.ok()) return recorder.status();
  Sink().options = options;
  of_process.store(recorder->get(), std::memory_order_release);
  SetDefaultRecordSink(&Sink());
  return recorder->release();  // threads may be inside from here on
}

absl::StatusOr<Recorder*> Serve(Recorder* recorder, Recorder::Beginning beginning) {
  const absl::Status begun = recorder->BeginServing(beginning);
  if (begun.ok()) return recorder;
  of_process.store(nullptr, std::memory_order_release);
  return begun;
}

Recorder* ProcessSink::StartInChild() noexcept {
  const std::lock_guard lock(StartMutex());
  if (Recorder* const recorder = of_process.load(std::memory_order_acquire)) return recorder;
  if (!forked.exchange(false)) return nullptr;
  absl::StatusOr<Recorder*> recorder = Publish(RecorderOptions(options));
  // The caller is inside a ledger, and may not look at one.
  if (recorder.ok()) recorder = Serve(*recorder, Recorder::Beginning::kSnapshotSoon);
  if (recorder.ok()) return *recorder;
  Say(recorder.status());
  return nullptr;
}

// GPULEDGER_TRACE and GPULEDGER_TRACE_LIMIT, as the library is loaded.
const bool started_by_environment = [] {
  const char* const path = std::getenv("GPULEDGER_TRACE");
  if (path == nullptr || *path == '\0') return false;
  RecorderOptions options;
  options.path = path;
  if (const char* const limit = std::getenv("GPULEDGER_TRACE_LIMIT"); limit != nullptr) {
    const absl::StatusOr<Bytes> parsed = ParseBytes(limit);
    if (!parsed.ok()) return Say(parsed.status()), false;
    options.limit = *parsed;
  }
  if (const absl::StatusOr<Recorder*> recorder = Recorder::StartOfProcess(options); !recorder.ok()) Say(recorder.status());
  return true;
}();

}  // namespace

Recorder* Recorder::OfProcess() { return Sink().Current(); }

absl::StatusOr<Recorder*> Recorder::StartOfProcess(const RecorderOptions& options) {
  std::unique_lock lock(StartMutex());
  if (Recorder* const recorder = of_process.load(std::memory_order_acquire)) {
    return absl::FailedPreconditionError(fmt::format("the process is recorded already, to {}", recorder->path()));
  }
  static const bool once = [] {
    std::atexit(AtExit);
    return pthread_atfork(nullptr, nullptr, AfterForkInChild) == 0;
  }();
  if (!once) return absl::ResourceExhaustedError("no memory for a fork handler");
  // A child makes its file beside this one, wherever it has gone by then.
  RecorderOptions absolute = options;
  std::error_code error;
  if (const std::filesystem::path path = std::filesystem::absolute(options.path, error); !error) absolute.path = path.string();
  const absl::StatusOr<Recorder*> recorder = Publish(absolute);
  Sink().forked = false;
  lock.unlock();  // whoever waits for it may be inside a ledger, which a snapshot stops
  if (!recorder.ok()) return recorder;
  // Who has no ledger yet writes all it ever does: a snapshot would fold its first steps for nothing.
  Beginning beginning = Beginning::kEmpty;
  ForEachKeeper([&](LedgerKeeper&) { beginning = Beginning::kSnapshotNow; });
  return Serve(*recorder, beginning);
}

}  // namespace gpuledger
