// The recorder that serves the whole process: from the environment or on demand, through forks, to the end.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

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

void AtExit() {
  // Threads may be inside it: it ends, and is not destroyed.
  if (Recorder* const recorder = of_process.exchange(nullptr)) recorder->End();
}

// In the child there is one thread, and the parent's file is not mapped: all that is left of its recorder is abandoned.
void AfterForkInChild() {
  new (&StartMutex()) std::mutex;
  if (of_process.exchange(nullptr) != nullptr) Sink().forked.store(true);
}

absl::StatusOr<Recorder*> StartNow(const RecorderOptions& options, bool in_child) {
  absl::StatusOr<std::unique_ptr<Recorder>> recorder = Recorder::StartWithSnapshot(options);
  if (!recorder.ok()) return recorder.status();
  Sink().options = options;
  of_process.store(recorder->get(), std::memory_order_release);
  SetDefaultRecordSink(&Sink());
  // Who has made no allocator yet writes all it ever does: a snapshot would fold its first steps for nothing. A child is
  // inside a ledger here, and may not look.
  bool from_the_beginning = !in_child;
  if (!in_child) ForEachAllocator([&](CachingAllocator&) { from_the_beginning = false; });
  (*recorder)->BeginServing(from_the_beginning ? Recorder::Snapshot::kNone : in_child ? Recorder::Snapshot::kSoon : Recorder::Snapshot::kNow);
  return recorder->release();
}

Recorder* ProcessSink::StartInChild() noexcept {
  const std::lock_guard lock(StartMutex());
  if (Recorder* const recorder = of_process.load(std::memory_order_acquire)) return recorder;
  if (!forked.exchange(false)) return nullptr;
  const absl::StatusOr<Recorder*> recorder = StartNow(RecorderOptions(options), true);
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
  const std::lock_guard lock(StartMutex());
  if (Recorder* const recorder = of_process.load(std::memory_order_acquire)) {
    return absl::FailedPreconditionError(fmt::format("the process is recorded already, to {}", recorder->path()));
  }
  static const bool once = [] {
    std::atexit(AtExit);
    return pthread_atfork(nullptr, nullptr, AfterForkInChild) == 0;
  }();
  if (!once) return absl::ResourceExhaustedError("no memory for a fork handler");
  return StartNow(options, false);
}

}  // namespace gpuledger
