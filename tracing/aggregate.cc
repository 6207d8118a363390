#include "aggregate.h"

#include <algorithm>

namespace gpuledger {
namespace {

uint64_t AccountKey(Payer payer) { return uint64_t{payer.owner.value()} << 8 | static_cast<uint64_t>(payer.role); }

void Take(uint64_t& from, uint64_t amount) { from -= std::min(from, amount); }

}  // namespace

void Aggregate::Put(uint64_t& to, uint64_t amount) { to += std::min(amount, kMostBytes - std::min(to, kMostBytes)); }

void Aggregate::Charge(const Live& live, bool more) {
  Device& device = devices_[live.ledger];
  Account& account = device.accounts[AccountKey(live.payer)];
  if (account.saved_epoch != device.epoch) {
    account.saved = account.in_use, account.saved_count = account.count;
    account.saved_epoch = device.epoch;
  }
  const uint64_t bytes = live.charged.count();
  const uint64_t rounding = bytes - std::min(bytes, live.requested.count());
  if (more) {
    account.in_use += bytes, account.count += 1;
    device.in_use += bytes, device.rounding += rounding;
    if (device.in_use > device.peak || (device.peak_is_older && device.in_use == device.peak)) {
      device.peak = device.in_use;
      device.peak_is_older = false;
      ++device.epoch;
      peak_indices_[live.ledger] = entries_;
    }
  } else {
    Take(account.in_use, bytes), Take(account.count, 1);
    Take(device.in_use, bytes), Take(device.rounding, rounding);
  }
  growth_.Change(live.payer.owner, live.site, live.charged, more);
}

void Aggregate::Allocate(const Record& r, bool pending) {
  ++allocations_;
  if (!early_.empty() && early_.erase(r.allocation.value()) != 0) return;
  if (r.charged.count() > kMostBytes - held_) return;  // damaged: no machine has so much
  const auto [at, fresh] = live_.try_emplace(r.allocation.value());
  if (!fresh) return;  // the snapshot has it
  Live& live = at->second;
  live.requested = r.requested, live.charged = r.charged;
  live.allocated = r.time, live.index = entries_;
  live.payer = {r.owner, r.role, r.scope};
  live.site = r.site, live.thread = r.thread, live.device = r.device, live.ledger = r.ledger.value();
  live.pending = pending;
  held_ += r.charged.count();
  if (pending) {
    devices_[live.ledger].pending += live.charged.count();
  } else {
    Charge(live, true);
  }
}

void Aggregate::Request(uint64_t id) {
  const auto found = live_.find(id);
  if (found == live_.end() || found->second.pending) return;
  Live& live = found->second;
  Charge(live, false);
  live.pending = true;
  devices_[live.ledger].pending += live.charged.count();
  growth_.Freed(live.site, live.charged, entries_ - live.index);
  NoteGone(id);
}

void Aggregate::NoteGone(uint64_t id) {
  if (settling_.begun && !settling_.ended && settling_.blocks.contains(id)) settling_.went.push_back(id);
}

void Aggregate::Complete(uint64_t id) {
  const auto found = live_.find(id);
  if (found == live_.end()) {
    if (early_.size() < kMostEarly) early_.insert(id);
    return;
  }
  if (!found->second.pending) Request(id);
  Take(devices_[found->second.ledger].pending, found->second.charged.count());
  held_ -= found->second.charged.count();
  NoteGone(id);
  live_.erase(found);
  if (!facts_.empty() && !(settling_.begun && !settling_.ended)) facts_.erase(id);
}

void Aggregate::AddRecord(const Record& r) {
  switch (r.kind) {
    case RecordKind::kAllocate: Allocate(r, false); break;
    case RecordKind::kFreeRequested: Request(r.allocation.value()); break;
    case RecordKind::kFreeCompleted: Complete(r.allocation.value()); break;
    case RecordKind::kTransfer:
      if (const auto found = live_.find(r.allocation.value()); found != live_.end()) {
        if (!found->second.pending) Charge(found->second, false);
        found->second.payer = {r.owner, r.role, r.scope};
        if (!found->second.pending) Charge(found->second, true);
      }
      break;
    case RecordKind::kLineageOpened: lineages_[r.owner.value()] = false; break;
    case RecordKind::kLineageClosed:
      if (const auto found = lineages_.find(r.owner.value()); found != lineages_.end()) found->second = true;
      break;
    case RecordKind::kMapped: Put(devices_[r.ledger.value()].reserved, r.charged.count()); break;
    case RecordKind::kUnmapped: Take(devices_[r.ledger.value()].reserved, r.charged.count()); break;
    case RecordKind::kOutOfMemory: break;
  }
}

void Aggregate::Add(const TraceEntry& e) {
  ++entries_;
  now_ = std::max(now_, e.record.time);
  switch (e.kind) {
    case EntryKind::kRecord: AddRecord(e.record); break;
    case EntryKind::kSnapshot: Allocate(e.record, e.pending); break;
    case EntryKind::kSnapshotPeak: {
      Device& device = devices_[e.record.ledger.value()];
      device.reserved = std::min(e.record.charged.count(), kMostBytes);
      if (e.value > device.peak) device.peak = std::min(e.value, kMostBytes), device.peak_is_older = true;
      break;
    }
    case EntryKind::kSnapshotPeakShare:
      devices_[e.record.ledger.value()].older_shares.push_back({{e.record.owner, e.record.role}, e.value});
      break;
    case EntryKind::kSnapshotLineage: lineages_[e.record.owner.value()] = e.value != 0; break;
    case EntryKind::kMark: growth_.Mark(); break;
    case EntryKind::kSettle: Settle(e.settle, e.record.time); break;
    case EntryKind::kFact: {
      if (!live_.contains(e.record.allocation.value())) break;
      std::vector<Fact>& facts = facts_[e.record.allocation.value()];
      for (Fact& fact : facts) {
        if (fact.kind == e.fact && fact.text == e.text) {  // said again: as new
          fact.value = e.value, fact.index = entries_;
          return;
        }
      }
      facts.push_back({e.fact, e.value, std::string(e.text), entries_});
      break;
    }
    case EntryKind::kScopeEnded: ended_scopes_.insert(e.scope.value()); break;
    case EntryKind::kProgramEnded: program_ended_ = true; break;
  }
}

// ---- verdicts ------------------------------------------------------------------------------------------------------------

LiveBlock Aggregate::BlockOf(uint64_t id, const Live& live) {
  LiveBlock block;
  block.device = live.device;
  block.id = AllocationId(id);
  block.payer = live.payer;
  block.requested = live.requested, block.charged = live.charged;
  block.site = live.site, block.thread = live.thread, block.allocated = live.allocated;
  block.pending = live.pending;
  return block;
}

void Aggregate::Settle(SettleStep step, TimePoint time) {
  Settling& s = settling_;
  if (step == SettleStep::kBegin) {
    s = {};
    s.begun = true;
    s.time = time;
    s.began_at = entries_;
    for (const auto& [id, live] : live_) s.blocks.emplace(id, BlockOf(id, live));
    for (const auto& [ledger, device] : devices_) {
      s.in_use += device.in_use, s.pending += device.pending, s.rounding += device.rounding;
      Put(s.reserved, device.reserved);
    }
    return;
  }
  if (!s.begun || s.ended) return;
  for (const uint64_t id : s.went) {
    const auto block = s.blocks.find(id);
    if (block == s.blocks.end() || block->second.gone) continue;
    // One that was pending goes when it completes; one in use when it is freed.
    if (block->second.pending && live_.contains(id)) continue;
    block->second.gone = true;
    block->second.gone_by = step;
  }
  s.went.clear();
  if (step == SettleStep::kCompleted) s.completed = true;
  if (step != SettleStep::kEnd) return;
  s.ended = true;
  for (auto& [id, block] : s.blocks) {
    if (const auto live = live_.find(id); live != live_.end()) block.payer = live->second.payer;  // it may have been adopted
    if (const auto facts = facts_.find(id); facts != facts_.end()) Learn(facts->second, s.began_at, block);
  }
  for (auto fact = facts_.begin(); fact != facts_.end();) {
    if (live_.contains(fact->first)) ++fact; else facts_.erase(fact++);
  }
  FillContext(s.context);
}

// As Settle::Impl::LearnFacts does for the living process: what a verdict hangs on must be of this settle.
void Aggregate::Learn(const std::vector<Fact>& facts, uint64_t since, LiveBlock& block) {
  std::vector<std::string> aliases;
  for (const Fact& fact : facts) {
    const bool now = fact.index > since;
    switch (fact.kind) {
      case FactKind::kHolder: block.holders.push_back(fact.text); break;
      case FactKind::kTraceback: (now ? block.tracebacks : block.holders).push_back(fact.text); break;
      case FactKind::kAliases: aliases.push_back(fact.text); break;
      case FactKind::kLargestView:
        if (now) block.largest_view = fact.value;
        break;
      case FactKind::kUnreachable: block.unreachable = now; break;
      case FactKind::kTensor: block.tensor = fact.text; break;
    }
  }
  block.holders.insert(block.holders.end(), aliases.begin(), aliases.end());
}

void Aggregate::FillContext(VerdictContext& context) const {
  for (const auto& [owner, closed] : lineages_) (closed ? context.closed_lineages : context.open_lineages).push_back(OwnerId(owner));
  for (const uint32_t scope : ended_scopes_) context.ended_scopes.push_back(ScopeId(scope));
  std::sort(context.closed_lineages.begin(), context.closed_lineages.end());
  std::sort(context.open_lineages.begin(), context.open_lineages.end());
  std::sort(context.ended_scopes.begin(), context.ended_scopes.end());
}

Aggregate::Judged Aggregate::Judge() const {
  Judged judged;
  const bool of_settle = settling_.ended;
  if (of_settle) {
    judged.context = settling_.context;
    judged.context.settled = settling_.completed;
    judged.in_use = settling_.in_use, judged.pending = settling_.pending, judged.reserved = settling_.reserved, judged.rounding = settling_.rounding;
    for (const auto& [id, block] : settling_.blocks) judged.blocks.push_back(block);
    if (!settling_.completed) judged.undecided_why = "streams were not waited for";
  } else {
    FillContext(judged.context);
    for (const auto& [ledger, device] : devices_) {
      judged.in_use += device.in_use, judged.pending += device.pending, judged.rounding += device.rounding;
      Put(judged.reserved, device.reserved);
    }
    for (const auto& [id, live] : live_) {
      LiveBlock& block = judged.blocks.emplace_back(BlockOf(id, live));
      if (const auto facts = facts_.find(id); facts != facts_.end()) Learn(facts->second, UINT64_MAX, block);
    }
    judged.undecided_why = settling_.begun   ? "the program ended in the middle of a settle"
                           : program_ended_  ? "the program ended without a settle"
                                             : "the program was killed, or is still running: nothing was settled";
  }
  judged.context.ended = program_ended_;
  std::sort(judged.blocks.begin(), judged.blocks.end(), [](const LiveBlock& a, const LiveBlock& b) { return a.id < b.id; });
  const TimePoint when = of_settle ? settling_.time : now_;
  for (const LiveBlock& block : judged.blocks) judged.ages_ns.push_back(when.value() - std::min(when.value(), block.allocated.value()));
  return judged;
}

std::vector<Aggregate::Share> Aggregate::AtPeak() const {
  std::map<std::pair<uint32_t, Role>, Share> shares;
  uint64_t total = 0;
  const auto add = [&](OwnerId owner, Role role, uint64_t bytes, uint64_t count) {
    bytes = std::min(bytes, kMostBytes - total);
    if (bytes == 0) return;
    total += bytes;
    Share& share = shares[{owner.value(), role}];
    share.owner = owner, share.role = role;
    share.bytes += bytes, share.count += count;
  };
  for (const auto& [ledger, device] : devices_) {
    if (device.peak_is_older) {
      for (const auto& [who, bytes] : device.older_shares) add(who.first, who.second, bytes, 0);
      continue;
    }
    for (const auto& [key, account] : device.accounts) {
      const bool changed = account.saved_epoch == device.epoch;
      add(OwnerId(static_cast<uint32_t>(key >> 8)), static_cast<Role>(key & 0xff), changed ? account.saved : account.in_use,
          changed ? account.saved_count : account.count);
    }
  }
  std::vector<Share> sorted;
  for (const auto& [key, share] : shares) sorted.push_back(share);
  std::stable_sort(sorted.begin(), sorted.end(), [](const Share& a, const Share& b) { return a.bytes > b.bytes; });
  return sorted;
}

}  // namespace gpuledger
