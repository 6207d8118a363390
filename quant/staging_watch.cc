#include "staging_watch.h"

#include <algorithm>

namespace gpuledger {

void StagingWatch::Write(const Record& record) noexcept {
  if (next_ != nullptr) next_->Write(record);
  const bool begins = record.kind == RecordKind::kAllocate || record.kind == RecordKind::kTransfer;
  if (!begins && record.kind != RecordKind::kFreeRequested) return;
  const std::lock_guard lock(mutex_);
  if (const auto found = staged_.find(record.allocation); found != staged_.end()) {
    now_ -= found->second.charged;
    staged_.erase(found);
  }
  if (!begins || record.role != Role::kStaging) return;
  now_ += record.charged;
  staged_.insert_or_assign(record.allocation, Staged{record.allocation, record.owner, record.charged});
  if (now_ <= peak_) return;
  peak_ = now_;
  if (peak_ > budget_) worst_ = staged_;
}

std::vector<StagingWatch::Staged> StagingWatch::over_budget() const {
  std::vector<Staged> worst;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, staged] : worst_) worst.push_back(staged);
  std::sort(worst.begin(), worst.end(), [](const Staged& a, const Staged& b) { return a.allocation < b.allocation; });
  return worst;
}

}  // namespace gpuledger
