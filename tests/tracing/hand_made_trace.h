// hand_made_trace.h - a trace in memory, entry by entry.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/trace_reader.h"

namespace gpuledger::testing {

// Entries in the order in which they are added; the clock goes on by one second from each to the next. Owners are named
// "owner 7" unless they are given a name; site 3 has the one frame f3() in code.cc:3.
class HandMadeTrace final : public TraceReader {
 public:
  // Allocations are charged a multiple of 512 bytes.
  uint64_t Allocate(uint32_t owner, uint64_t bytes, Role role = Role::kOther, uint32_t site = 0, uint32_t ledger = 0) {
    Record r = Of(RecordKind::kAllocate, ++ids_);
    r.owner = OwnerId(owner), r.role = role, r.site = SiteId(site), r.ledger = LedgerId(ledger);
    r.requested = Bytes(bytes), r.charged = Bytes((bytes + 511) / 512 * 512);
    return Add(r), ids_;
  }
  void Request(uint64_t id) { Add(Of(RecordKind::kFreeRequested, id)); }
  void Complete(uint64_t id) { Add(Of(RecordKind::kFreeCompleted, id)); }
  void Free(uint64_t id) { Request(id), Complete(id); }
  void Transfer(uint64_t id, uint32_t owner, Role role) {
    Record r = Of(RecordKind::kTransfer, id);
    r.owner = OwnerId(owner), r.role = role;
    Add(r);
  }
  void Lineage(uint32_t owner, bool open) {
    Record r = Of(open ? RecordKind::kLineageOpened : RecordKind::kLineageClosed, 0);
    r.owner = OwnerId(owner);
    Add(r);
  }
  void Mapped(uint64_t bytes) {
    Record r = Of(RecordKind::kMapped, 0);
    r.charged = Bytes(bytes);
    Add(r);
  }
  void Mark(std::string text = "step") { Add(EntryKind::kMark).text = Keep(std::move(text)); }
  void Settle(SettleStep step) { Add(EntryKind::kSettle).settle = step; }
  void SettleAll() {
    for (const SettleStep step : {SettleStep::kBegin, SettleStep::kCompleted, SettleStep::kCollected, SettleStep::kReleased, SettleStep::kEnd}) Settle(step);
  }
  void Fact(uint64_t id, FactKind kind, std::string text, uint64_t value = 0) {
    TraceEntry& e = Add(EntryKind::kFact);
    e.record.allocation = AllocationId(id);
    e.fact = kind, e.value = value, e.text = Keep(std::move(text));
  }
  void ProgramEnded() { Add(EntryKind::kProgramEnded); }
  TraceEntry& Add(EntryKind kind) {
    TraceEntry e;
    e.kind = kind;
    e.record.time = TimePoint(entries_.size() * 1'000'000'000);
    return entries_.emplace_back(e);
  }
  void Add(const Record& record) {
    const TimePoint time = Add(EntryKind::kRecord).record.time;
    entries_.back().record = record;
    entries_.back().record.time = time;
  }
  void Name(uint32_t owner, std::string name) { names_[owner] = std::move(name); }
  TraceInfo& its_info() { return info_; }
  [[nodiscard]] const std::deque<TraceEntry>& entries() const { return entries_; }

  bool Next(TraceEntry* entry) override {
    if (at_ == entries_.size()) return false;
    *entry = entries_[at_++];
    return true;
  }
  void Rewind() override { at_ = 0; }
  [[nodiscard]] const TraceInfo& info() const override { return info_; }
  [[nodiscard]] std::string_view owner_name(OwnerId owner) const override {
    return names_.try_emplace(owner.value(), fmt::format("owner {}", owner.value())).first->second;
  }
  [[nodiscard]] const std::vector<TraceFrame>& site(SiteId site) const override {
    std::vector<TraceFrame>& stack = sites_[site.value()];
    if (stack.empty() && site != kNoSite) {
      TraceFrame& frame = stack.emplace_back();
      frame.python = true;
      frame.function = fmt::format("f{}()", site.value());
      frame.file = "code.cc";
      frame.line = site.value();
    }
    return stack;
  }
  [[nodiscard]] double progress() const override { return 0.5; }

 private:
  static Record Of(RecordKind kind, uint64_t id) {
    Record r;
    r.kind = kind;
    r.allocation = AllocationId(id);
    return r;
  }
  std::string_view Keep(std::string text) { return texts_.emplace_back(std::move(text)); }

  std::deque<TraceEntry> entries_;
  std::deque<std::string> texts_;
  mutable std::map<uint32_t, std::string> names_;
  mutable std::map<uint32_t, std::vector<TraceFrame>> sites_;
  TraceInfo info_;
  size_t at_ = 0;
  uint64_t ids_ = 0;
};

}  // namespace gpuledger::testing
