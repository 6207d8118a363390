// quant/staging_watch.h - how many bytes were staged at the worst instant, and by whom.
//
// A sink between the ledger and whoever else listens. Thread-safe: changes are taken in the order of their coming, which
// for one thread is the ledger's. The ledger's own Usage::peak of role `staging` is the figure; this gives the names to it.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <mutex>
#include <vector>

#include "gpuledger/record.h"

namespace gpuledger {

class StagingWatch final : public RecordSink {
 public:
  struct Staged {
    AllocationId allocation;
    OwnerId owner;
    Bytes charged;
  };

  StagingWatch(Bytes budget, RecordSink* next) : budget_(budget), next_(next) {}
  void Write(const Record& record) noexcept override;

  // What was staged at the first instant of the highest peak above the budget, in the order of allocation; empty if
  // there was none. Read it when no thread changes the ledger.
  [[nodiscard]] std::vector<Staged> over_budget() const;

 private:
  const Bytes budget_;
  RecordSink* const next_;
  mutable std::mutex mutex_;  // of all below
  absl::flat_hash_map<AllocationId, Staged> staged_;
  absl::flat_hash_map<AllocationId, Staged> worst_;
  Bytes now_, peak_;
};

}  // namespace gpuledger
