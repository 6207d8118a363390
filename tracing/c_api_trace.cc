// Recording, for C.
#include "gpuledger/c_status.h"
#include "gpuledger/gpuledger_tracing.h"
#include "gpuledger/recorder.h"

using namespace gpuledger;  // NOLINT(google-build-using-namespace): the C boundary of this very library

gpuledger_status gpuledger_trace_start(const char* path, uint64_t limit) noexcept {
  return Guard([&]() -> absl::Status {
    if (path == nullptr || *path == '\0') return absl::InvalidArgumentError("gpuledger_trace_start: a path is needed");
    RecorderOptions options;
    options.path = path;
    if (limit != 0) options.limit = Bytes(limit);
    return Recorder::StartOfProcess(options).status();
  });
}

const char* gpuledger_trace_path(void) noexcept {
  const Recorder* const recorder = Recorder::OfProcess();
  return recorder == nullptr ? "" : recorder->path().c_str();
}

gpuledger_status gpuledger_mark(const char* text) noexcept {
  return Guard([&]() -> absl::Status {
    if (text == nullptr) return absl::InvalidArgumentError("gpuledger_mark: a text is needed");
    if (Recorder* const recorder = Recorder::OfProcess()) recorder->Mark(text);
    return absl::OkStatus();
  });
}
