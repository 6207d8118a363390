// gpuledger/recorder.h - writes what ledgers do into a trace file.
//
// One recorder, one file, one process. A thread writes into memory of its own that is mapped from the file, so that whatever
// ends the process (kill -9, os._exit, the OOM killer) leaves all that was written; a thread of the recorder compresses what
// is full. A full disk or a file at its limit never stops the program: see RecorderOptions. A forked child has a recorder
// of its own file (the name with its process id), which begins with what was live.
//
// GPULEDGER_TRACE=FILE in the environment starts the recorder of the process when the library is loaded; %p in it is the
// process id. Then every ledger that was given no sink of its own writes here.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/record.h"
#include "gpuledger/trace.h"
#include "gpuledger/types.h"

namespace gpuledger {

struct GPULEDGER_EXPORT RecorderOptions {
  // Made 0600, never over an existing file. %p is the process id.
  std::string path;
  // What the file may take on disk. Beyond it the oldest entries are dropped, and what was live then is kept as a snapshot,
  // so that verdicts stay right.
  Bytes limit = Bytes(uint64_t{2} << 30);
};

class GPULEDGER_EXPORT Recorder final : public RecordSink {
 public:
  // Errors: kAlreadyExists, kPermissionDenied and the like, with the path and errno's sentence.
  static absl::StatusOr<std::unique_ptr<Recorder>> Start(const RecorderOptions& options);
  // End(), and no thread may be inside any more.
  ~Recorder() override;
  // Finishes the file: kProgramEnded, all compressed. What is written afterwards goes nowhere. A second call does nothing.
  void End() noexcept;

  // The recorder that serves ledgers without a sink of their own; null if there is none. Start it once; it lives until the
  // process ends, and is finished by an exit handler. What is live already becomes the snapshot at the file's beginning.
  static Recorder* OfProcess();
  static absl::StatusOr<Recorder*> StartOfProcess(const RecorderOptions& options);

  void Write(const Record& record) noexcept override;
  // The other kinds. Thread-safe; they never block and never fail: what cannot be written is counted as lost.
  void Mark(std::string_view text) noexcept;
  void Settle(SettleStep step) noexcept;
  void Fact(DeviceId device, AllocationId allocation, FactKind fact, uint64_t value, std::string_view text) noexcept;
  void ScopeEnded(ScopeId scope) noexcept override;

  [[nodiscard]] const std::string& path() const;
  // Entries that went into no file, because the disk was full.
  [[nodiscard]] uint64_t lost() const;

  // The library's own: StartOfProcess in two steps. Of what is live, a snapshot once entries come in: now, or by the recorder's
  // thread where the caller may be inside a ledger.
  enum class Snapshot : uint8_t { kNone, kNow, kSoon };
  static absl::StatusOr<std::unique_ptr<Recorder>> StartWithSnapshot(const RecorderOptions& options);
  void BeginServing(Snapshot snapshot);
  struct Impl;

 private:
  explicit Recorder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace gpuledger
