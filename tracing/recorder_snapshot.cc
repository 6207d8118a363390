// The live set as entries: where recording begins with something alive, and where older entries are dropped.
#include <algorithm>

#include "facts.h"
#include "gpuledger/owner.h"
#include "gpuledger/process.h"
#include "gpuledger/sites.h"
#include "recorder_impl.h"

namespace gpuledger {

using trace::Extra;
using trace::ExtraEntry;

namespace {

constexpr uint64_t kSlack = 64 << 20;

// Entries into segments of their own, one after the other.
class SnapshotSegments {
 public:
  struct Segment {
    std::vector<unsigned char> bytes;
    uint32_t entries = 0;
  };
  void Add(const ExtraEntry& entry) {
    if (segments_.empty() || segments_.back().bytes.size() + trace::kLongestEntry > trace::kSegmentRoom) {
      segments_.emplace_back();
      deltas_ = {};
    }
    std::vector<unsigned char>& to = segments_.back().bytes;
    const size_t before = to.size();
    to.resize(before + trace::kLongestEntry);
    to.resize(before + trace::Encode(entry, deltas_, to.data() + before));
    segments_.back().entries += 1;
  }
  [[nodiscard]] const std::vector<Segment>& segments() const { return segments_; }

 private:
  std::vector<Segment> segments_;
  trace::Deltas deltas_;
};

Record RecordOf(const LiveAllocation& live, const LedgerMoment& moment) {
  Record r;
  r.kind = RecordKind::kAllocate;
  r.time = live.time;
  r.allocation = live.id;
  r.address = live.address.address();
  r.requested = live.requested;
  r.charged = live.charged;
  r.stream = live.stream.raw();
  r.owner = live.payer.owner;
  r.role = live.payer.role;
  r.scope = live.payer.scope;
  r.site = live.site;
  r.thread = live.thread;
  r.device = live.stream.device();
  r.ledger = moment.id;
  return r;
}

}  // namespace

uint64_t Recorder::Impl::WriteSnapshot() {
  SnapshotSegments to;
  std::vector<LedgerMoment> moments;
  std::vector<Bytes> reserved;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    moments.push_back(keeper.ledger().moment());
    reserved.push_back(keeper.totals().reserved);
  });
  const auto name = [&](OwnerId owner) { to.Add({.kind = Extra::kOwner, .id = owner.value(), .text = OwnerName(owner)}); };
  // What entries after the cut may refer to: all that the file has named, and all that the moments name.
  std::vector<uint32_t> owners_named;
  owners.ForEach([&](uint32_t id) { owners_named.push_back(id); });
  for (const LedgerMoment& m : moments) {
    for (const OwnerUsage& row : m.owners) owners_named.push_back(row.payer.owner.value());
  }
  std::sort(owners_named.begin(), owners_named.end());
  owners_named.erase(std::unique(owners_named.begin(), owners_named.end()), owners_named.end());
  for (const uint32_t id : owners_named) name(OwnerId(id));
  std::vector<uint32_t> sites_named;
  sites.ForEach([&](uint32_t id) { sites_named.push_back(id); });
  for (const LedgerMoment& m : moments) {
    for (const LiveAllocation& live : m.live) sites_named.push_back(live.site.value());
  }
  std::sort(sites_named.begin(), sites_named.end());
  sites_named.erase(std::unique(sites_named.begin(), sites_named.end()), sites_named.end());
  NameSites(sites_named, [&](const ExtraEntry& entry) { to.Add(entry); });

  for (size_t i = 0; i < moments.size(); ++i) {
    const LedgerMoment& m = moments[i];
    const uint64_t ledger = m.id.value(), time = m.time.value();
    for (const LedgerMoment::Cut& cut : m.cuts) {
      to.Add({.kind = Extra::kCut, .time = time, .id = ledger, .value = cut.thread.value(), .more = cut.sequence});
    }
    to.Add({.kind = Extra::kPeak, .time = time, .id = ledger, .value = m.usage.peak.count(), .more = reserved[i].count()});
    for (const OwnerUsage& row : m.owners) {
      if (row.usage.at_device_peak.is_zero()) continue;
      to.Add({.kind = Extra::kPeakShare, .time = time, .id = ledger, .value = row.payer.owner.value(),
              .more = static_cast<uint64_t>(row.payer.role), .third = row.usage.at_device_peak.count()});
    }
    for (const OwnerId owner : m.open_lineages) to.Add({.kind = Extra::kLineage, .time = time, .id = ledger, .value = owner.value(), .more = 0});
    for (const OwnerId owner : m.closed_lineages) to.Add({.kind = Extra::kLineage, .time = time, .id = ledger, .value = owner.value(), .more = 1});
    for (const LiveAllocation& live : m.live) {
      const Record record = RecordOf(live, m);
      to.Add({.kind = Extra::kLive, .time = time, .value = live.pending ? 1u : 0u, .record = &record});
      for (const KnownFact& fact : FactsOf(live.id)) {
        to.Add({.kind = Extra::kFact, .time = time, .id = live.id.value(), .value = static_cast<uint64_t>(fact.kind),
                .more = fact.value, .device = live.stream.device().value(), .text = fact.text});
      }
      if (live.payer.scope != ScopeId(0) && gpuledger::ScopeEnded(live.payer.scope)) {
        to.Add({.kind = Extra::kEndedScope, .time = time, .id = live.payer.scope.value()});
      }
    }
  }
  // One piece, so that its blocks follow each other.
  std::vector<unsigned char> all;
  trace::Compressor compressor_here;
  uint64_t left = to.segments().size();
  for (const auto& segment : to.segments()) {
    trace::BlockHeader header{};
    header.type = trace::BlockType::kSnapshot;
    header.number = --left;
    header.entries = segment.entries;
    const std::span<const unsigned char> block = compressor_here.MakeBlock(header, segment.bytes);
    if (block.empty()) return trace::kSnapshotDue;
    all.insert(all.end(), block.begin(), block.end());
    all.resize((all.size() + trace::kAlignment - 1) / trace::kAlignment * trace::kAlignment);
  }
  if (all.empty()) return 0;
  const uint64_t offset = file->Reserve(all.size());
  return file->Write(offset, all) ? offset : trace::kSnapshotDue;
}

void Recorder::Impl::BeginWithSnapshot() {
  std::atomic_ref(file->header().snapshot).store(WriteSnapshot(), std::memory_order_release);
}

void Recorder::Impl::Fold() {
  const uint64_t now = file->end();  // every block before it was written before the snapshot is taken
  const uint64_t snapshot = WriteSnapshot();
  fold_again_at = file->end() + options.limit.count() / 2;
  if (snapshot != 0 && snapshot != trace::kSnapshotDue) {
    if (last_snapshot != 0) DropBefore(folded_at);
    folded_at = now;
    last_snapshot = snapshot;
  }
  // Where nothing can be given back, since no snapshot finds room or the file system makes no holes, the file ends here.
  file->SetMost(given_back_to + 2 * options.limit.count() + kSlack);
}

void Recorder::Impl::DropBefore(uint64_t offset) {
  std::vector<uint64_t> offsets;
  {
    const std::lock_guard lock(mutex);
    for (const auto& ring : rings) offsets.push_back(ring->offset);
  }
  // Reading goes on from the snapshot before the newest one: that is said first, and then made true.
  trace::FileHeader& header = file->header();
  std::atomic_ref(header.snapshot).store(last_snapshot, std::memory_order_release);
  const uint64_t before = std::atomic_ref(header.first_offset).exchange(offset, std::memory_order_acq_rel);
  header.dropped_bytes += offset - before;
  if (file->Punch(before, offset, offsets)) given_back_to = offset;
}

}  // namespace gpuledger
