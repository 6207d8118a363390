// gpuledger/settle.h - a verdict over all allocators of the living process, in steps.
//
// What is alive when a settle begins is what it judges; between its steps things go away, and when says why they were alive
// (trace.h: SettleStep). It compares sets of allocation ids, not totals. The caller does what lies between:
//
//   Settle settle;              // begin
//   settle.Complete();          // waits for streams: what went was deferred
//   ...gc.collect()...          settle.Collected();
//   ...drop workspaces...       settle.Released();
//   ...facts: NoteFact...       settle.End();
//   settle.Report(options)
//
// A block that another thread frees just while the collector runs looks like one that went with it: a warning, not an error.
// Steps may be left out, but for Complete and End: without them the report is undecided. A Settle belongs to one thread; the
// others may go on allocating and freeing. Each step stops every ledger for as long as it takes to copy what is live.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/leak_report.h"

namespace gpuledger {

class GPULEDGER_EXPORT Settle {
 public:
  Settle();
  ~Settle();
  Settle(const Settle&) = delete;
  Settle& operator=(const Settle&) = delete;

  // Waits for the streams of pending blocks and completes them. Synchronises the devices. Errors: those of a stream that
  // could not be waited for; the verdict is undecided then.
  absl::Status Complete();
  void Collected();
  void Released();
  // Looks for blocks whose address is nowhere in host memory (process.h: FindLost), which costs some hundred milliseconds a GiB
  // of it. Worth it where blocks are held by pointers, as in C++; a storage of Python is reachable as long as it lives.
  absl::Status FindLost();
  // What the block in use that holds `address` is now known by, until it is freed. Any time, any thread. kNotFound.
  static absl::Status NoteFact(uint64_t address, FactKind kind, uint64_t value, std::string_view text);
  void End();

  // Of the blocks judged, those still in use at the last step, for whoever looks for holders.
  struct Place {
    uint64_t address = 0;
    Bytes size;  // requested
  };
  [[nodiscard]] std::vector<Place> places() const;
  // Sums, by class, to what was live when the settle began: asserted against the ledgers, kInternal if it does not hold.
  [[nodiscard]] absl::StatusOr<LeakReport> Report(const ReportOptions& options) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gpuledger
