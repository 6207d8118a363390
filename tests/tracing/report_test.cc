// From entries to a report: what is live, what was at the peak, what each class gets, and how it is shown.
#include "gpuledger/leak_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <set>

#include <fmt/format.h>

#include "allocation_trace.h"
#include "hand_made_trace.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::HandMadeTrace;

LeakReport ReportOf(HandMadeTrace& trace, ReportOptions options = {}) {
  trace.Rewind();
  absl::StatusOr<LeakReport> report = ReportOnTrace(trace, options);
  EXPECT_TRUE(report.ok()) << report.status();
  Bytes sum;
  for (const ClassTotal& total : report->classes) sum += total.bytes;
  EXPECT_EQ(sum, report->live);
  return *std::move(report);
}

ReportOptions WithBlocks() {
  ReportOptions options;
  options.blocks = true;
  return options;
}

uint64_t BytesOf(const LeakReport& report, LeakClass leak_class) { return report.classes[static_cast<size_t>(leak_class)].bytes.count(); }

// ---- who was live at the peak, as an accountant would find out who has all the time in the world -------------------------

struct Naive {
  struct Block {
    uint32_t owner;
    Role role;
    uint64_t bytes;
  };
  uint64_t peak = 0;
  std::map<uint64_t, Block> at_peak;

  explicit Naive(const HandMadeTrace& trace) {
    std::map<uint64_t, Block> live;
    uint64_t in_use = 0;
    for (const TraceEntry& e : trace.entries()) {
      const uint64_t id = e.record.allocation.value();
      if (e.kind != EntryKind::kRecord) continue;
      if (e.record.kind == RecordKind::kAllocate) live[id] = {e.record.owner.value(), e.record.role, e.record.charged.count()}, in_use += e.record.charged.count();
      if (e.record.kind == RecordKind::kFreeRequested) in_use -= live.at(id).bytes, live.erase(id);
      if (e.record.kind == RecordKind::kTransfer) live.at(id).owner = e.record.owner.value(), live.at(id).role = e.record.role;
      if (in_use > peak) peak = in_use, at_peak = live;
    }
  }
};

// Traces may be long: the copies of the live set are made in a second pass.
void ExpectThePeakOf(HandMadeTrace& trace, uint64_t peak, const std::map<uint64_t, Naive::Block>& blocks) {
  const LeakReport report = ReportOf(trace, WithBlocks());
  EXPECT_EQ(report.peak.count(), peak);
  std::map<std::pair<std::string, Role>, std::pair<uint64_t, uint64_t>> expected, found;
  for (const auto& [id, block] : blocks) {
    auto& [bytes, count] = expected[{fmt::format("owner {}", block.owner), block.role}];
    bytes += block.bytes, count += 1;
  }
  for (const PeakShare& share : report.at_peak) found[{share.owner, share.role}] = {share.bytes.count(), share.count};
  EXPECT_EQ(found, expected);
  ASSERT_EQ(report.blocks_at_peak.size(), blocks.size());
  uint64_t before = UINT64_MAX;
  for (const BlockAtPeak& b : report.blocks_at_peak) {
    const auto block = blocks.find(b.block.id.value());
    ASSERT_NE(block, blocks.end());
    ASSERT_EQ(b.block.charged.count(), block->second.bytes);
    ASSERT_EQ(b.block.payer.role, block->second.role);
    ASSERT_EQ(b.owner, fmt::format("owner {}", block->second.owner));
    ASSERT_LE(b.block.charged.count(), before) << "largest first";
    before = b.block.charged.count();
  }
}

TEST(ReportTest, ThePeakAndWhoWasLiveThenAreThoseOfANaiveRecomputation) {
  for (int round = 0; round < 50; ++round) {
    const uint64_t seed = std::random_device{}();
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    HandMadeTrace trace;
    std::vector<uint64_t> live;
    for (int i = 0; i < 400; ++i) {
      const auto owner = static_cast<uint32_t>(random() % 5);
      const auto role = static_cast<Role>(random() % 3);
      const size_t any = live.empty() ? 0 : random() % live.size();
      if (live.empty() || random() % 2 == 0) {
        live.push_back(trace.Allocate(owner, random() % 4000 + 1, role));
      } else if (random() % 3 == 0) {
        trace.Transfer(live[any], owner, role);
      } else {
        trace.Request(live[any]);
        if (random() % 2 == 0) trace.Complete(live[any]);
        live.erase(live.begin() + static_cast<ptrdiff_t>(any));
      }
    }
    const Naive naive(trace);
    ExpectThePeakOf(trace, naive.peak, naive.at_peak);
  }
}

// Those of bench/traces, and larger ones from the folder that GPULEDGER_TRACES names.
class RecordedTraceTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, RecordedTraceTest, ::testing::Values("finetune", "generate", "moe", "streams"), [](const auto& one) { return std::string(one.param); });

TEST_P(RecordedTraceTest, ThePeakAndWhoWasLiveThenAreThoseOfANaiveRecomputation) {
  std::string path;
  const char* const more = std::getenv("GPULEDGER_TRACES");
  for (const std::string& folder : {std::string(GPULEDGER_BENCH_TRACES), std::string(more == nullptr ? GPULEDGER_BENCH_TRACES : more)}) {
    if (path = fmt::format("{}/{}.trace.gz", folder, GetParam()); std::filesystem::exists(path)) break;
  }
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "set GPULEDGER_TRACES to the folder that has " << GetParam() << ".trace.gz";
  const absl::StatusOr<replay::AllocationTrace> recorded = replay::ReadAllocationTrace(path);
  ASSERT_TRUE(recorded.ok()) << recorded.status();
  HandMadeTrace trace;
  const auto owner_of = [](uint64_t index) { return static_cast<uint32_t>(index % 97); };
  const auto role_of = [](uint64_t index) { return static_cast<Role>(index % kRoleCount); };
  for (const replay::Row& row : recorded->rows) {
    const uint64_t index = row.allocation;
    if (row.op == replay::Op::kAllocate) {
      ASSERT_EQ(trace.Allocate(owner_of(index), recorded->allocations[index].size.count(), role_of(index)), index + 1);
    }
    if (row.op == replay::Op::kFree) trace.Request(index + 1);
    if (row.op == replay::Op::kComplete) trace.Complete(index + 1);
  }
  // First when the peak is, then what is live then: no set is copied on the way.
  uint64_t in_use = 0, peak = 0;
  size_t peak_at = 0;
  std::vector<uint64_t> charged(recorded->allocations.size());
  const auto charge_of = [&](uint64_t index) { return (recorded->allocations[index].size.count() + 511) / 512 * 512; };
  for (size_t i = 0; i < recorded->rows.size(); ++i) {
    const replay::Row& row = recorded->rows[i];
    if (row.op == replay::Op::kAllocate) in_use += charge_of(row.allocation);
    if (row.op == replay::Op::kFree) in_use -= charge_of(row.allocation);
    if (in_use > peak) peak = in_use, peak_at = i;
  }
  std::map<uint64_t, Naive::Block> blocks;
  for (size_t i = 0; i <= peak_at; ++i) {
    const uint64_t index = recorded->rows[i].allocation;
    if (recorded->rows[i].op == replay::Op::kAllocate) blocks[index + 1] = {owner_of(index), role_of(index), charge_of(index)};
    if (recorded->rows[i].op == replay::Op::kFree) blocks.erase(index + 1);
  }
  ExpectThePeakOf(trace, peak, blocks);
}

TEST(ReportTest, EachLedgerHasAPeakOfItsOwn) {
  HandMadeTrace trace;
  const uint64_t first = trace.Allocate(1, 4096, Role::kOther, 0, /*ledger=*/1);
  trace.Free(first);
  trace.Allocate(2, 1024, Role::kOther, 0, /*ledger=*/2);
  const LeakReport report = ReportOf(trace);
  EXPECT_EQ(report.peak, 5_KiB);
  ASSERT_EQ(report.at_peak.size(), 2u);
  EXPECT_EQ(report.at_peak[0].owner, "owner 1");
}

TEST(ReportTest, WhatASnapshotSaysOfAnOlderPeakStandsUntilThereIsAHigherOne) {
  HandMadeTrace trace;
  TraceEntry& peak = trace.Add(EntryKind::kSnapshotPeak);
  peak.value = 10'240, peak.record.charged = 2_MiB;
  TraceEntry& share = trace.Add(EntryKind::kSnapshotPeakShare);
  share.value = 10'240, share.record.owner = OwnerId(7), share.record.role = Role::kSource;
  TraceEntry& live = trace.Add(EntryKind::kSnapshot);
  live.record.allocation = AllocationId(1000), live.record.owner = OwnerId(8), live.record.requested = live.record.charged = 1_KiB;
  const LeakReport before = ReportOf(trace);
  EXPECT_EQ(before.peak.count(), 10'240u);
  ASSERT_EQ(before.at_peak.size(), 1u);
  EXPECT_EQ(before.at_peak[0].owner, "owner 7");
  EXPECT_EQ(before.live, 1_KiB);
  EXPECT_EQ(before.reserved, 2_MiB);
  trace.Allocate(9, 9'216);  // as much as then: it is known who
  ASSERT_EQ(ReportOf(trace, WithBlocks()).blocks_at_peak.size(), 2u);
  trace.Allocate(9, 1'024);
  const LeakReport after = ReportOf(trace);
  EXPECT_EQ(after.peak.count(), 11'264u);
  ASSERT_EQ(after.at_peak.size(), 2u);
  EXPECT_EQ(after.at_peak[0].owner, "owner 9");
}

// ---- verdicts --------------------------------------------------------------------------------------------------------------

TEST(ReportTest, ASettleIsReadBetweenItsSteps) {
  HandMadeTrace trace;
  const uint64_t deferred = trace.Allocate(1, 512), cyclic = trace.Allocate(2, 1024), workspace = trace.Allocate(3, 2048), kept = trace.Allocate(4, 4096);
  const uint64_t held = trace.Allocate(5, 8192), source = trace.Allocate(6, 16'384, Role::kSource);
  trace.Fact(source, FactKind::kHolder, "local 'value' of convert()");
  trace.Lineage(6, true), trace.Lineage(6, false);
  trace.Request(deferred);
  trace.Settle(SettleStep::kBegin);
  trace.Complete(deferred);
  trace.Settle(SettleStep::kCompleted);
  trace.Free(cyclic);
  trace.Settle(SettleStep::kCollected);
  trace.Free(workspace);
  trace.Settle(SettleStep::kReleased);
  trace.Fact(held, FactKind::kTraceback, "sys.last_exc");
  trace.Allocate(7, 512);  // after the beginning: not judged
  trace.Settle(SettleStep::kEnd);
  trace.Free(kept);
  const LeakReport report = ReportOf(trace);
  EXPECT_TRUE(report.settled && IsDecided(report) && HasLeaks(report));
  EXPECT_EQ(report.live.count(), 512u + 1024 + 2048 + 4096 + 8192 + 16'384);
  EXPECT_EQ(report.pending.count(), 512u);
  EXPECT_EQ(BytesOf(report, LeakClass::kDeferred), 512u);
  EXPECT_EQ(BytesOf(report, LeakClass::kCycle), 1024u);
  EXPECT_EQ(BytesOf(report, LeakClass::kTracebackHeld), 8192u);
  EXPECT_EQ(BytesOf(report, LeakClass::kSuperseded), 16'384u);
  EXPECT_EQ(BytesOf(report, LeakClass::kKept), 2048u + 4096);
  ASSERT_EQ(report.leaks.size(), 3u);
  EXPECT_EQ(report.leaks[0].holders, std::vector<std::string>{"local 'value' of convert()"});
}

TEST(ReportTest, OfSeveralSettlesTheLastCounts) {
  HandMadeTrace trace;
  const uint64_t once = trace.Allocate(1, 512, Role::kSource);
  trace.Lineage(1, true), trace.Lineage(1, false);
  trace.SettleAll();
  EXPECT_TRUE(HasLeaks(ReportOf(trace)));
  trace.Free(once);
  trace.Allocate(2, 1024);
  trace.SettleAll();
  const LeakReport report = ReportOf(trace);
  EXPECT_FALSE(HasLeaks(report));
  EXPECT_EQ(report.live, 1_KiB);
}

TEST(ReportTest, WithoutASettleNothingIsDecidedUnlessTheProgramEnded) {
  HandMadeTrace trace;
  const uint64_t block = trace.Allocate(1, 512);
  LeakReport report = ReportOf(trace);
  EXPECT_FALSE(IsDecided(report) || HasLeaks(report));
  EXPECT_EQ(report.undecided.count, 1u);
  EXPECT_THAT(report.undecided_why, HasSubstr("killed"));
  EXPECT_THAT(ToText(report, false), HasSubstr("no leaks found, but undecided"));
  trace.Settle(SettleStep::kBegin);
  EXPECT_THAT(ReportOf(trace).undecided_why, HasSubstr("in the middle of a settle"));

  HandMadeTrace leaky;
  leaky.Allocate(1, 512);
  leaky.ProgramEnded();
  report = ReportOf(leaky);
  EXPECT_TRUE(IsDecided(report) && HasLeaks(report)) << "all that is left is a leak";
  EXPECT_EQ(BytesOf(report, LeakClass::kUnbalanced), 512u);

  HandMadeTrace clean;
  clean.Free(clean.Allocate(1, 512));
  report = ReportOf(clean);
  EXPECT_TRUE(!IsDecided(report) || report.live.is_zero());
  clean.ProgramEnded();
  report = ReportOf(clean);
  EXPECT_TRUE(IsDecided(report) && !HasLeaks(report)) << "nothing is left";
  EXPECT_EQ(report.undecided_why, "");
  static_cast<void>(block);
}

TEST(ReportTest, NothingLiveInAKilledProgramIsStillUndecided) {
  HandMadeTrace trace;
  trace.Free(trace.Allocate(1, 512));
  EXPECT_FALSE(IsDecided(ReportOf(trace)));
}

TEST(ReportTest, AnOwnerThatGrowsAtEachMarkIsReportedAndOneThatRestsOnceIsNot) {
  HandMadeTrace trace;
  trace.Allocate(2, 512, Role::kCache, 5);
  for (int step = 0; step < 8; ++step) {
    trace.Allocate(1, 4096, Role::kCache, 4);
    if (step != 6) trace.Allocate(2, 4096, Role::kCache, 5);
    trace.Mark();
  }
  trace.SettleAll();
  const LeakReport report = ReportOf(trace);
  ASSERT_EQ(report.growth.size(), 1u);
  EXPECT_EQ(report.growth[0].owner, "owner 1");
  EXPECT_EQ(report.growth[0].at_marks.back(), 32_KiB);
  EXPECT_TRUE(HasLeaks(report));
  EXPECT_THAT(ToText(report, false), HasSubstr("Growth of owner owner 1"));
  ReportOptions suppressed;
  suppressed.suppressions = Suppressions::Parse("leak:f4").value();
  EXPECT_FALSE(HasLeaks(ReportOf(trace, suppressed)));
}

TEST(ReportTest, ABlockThatOutlivesItsSiblingsIsAnOutlier) {
  HandMadeTrace trace;
  trace.Allocate(1, 512, Role::kOther, 4);
  trace.Allocate(1, 512, Role::kOther, 5);  // no siblings
  for (int i = 0; i < 6000; ++i) trace.Free(trace.Allocate(1, 512, Role::kOther, 4));
  trace.Allocate(1, 512, Role::kOther, 4);  // young
  trace.SettleAll();
  const LeakReport report = ReportOf(trace);
  ASSERT_EQ(report.outliers.size(), 1u);
  EXPECT_EQ(report.outliers[0].bytes, 512_B);
  EXPECT_EQ(report.outliers[0].siblings, 6000u);
  EXPECT_FALSE(HasLeaks(report));
}

// ---- what damaged traces say -----------------------------------------------------------------------------------------------

TEST(ReportTest, SizesThatNoMachineHasOverflowNothing) {
  HandMadeTrace trace;
  Record huge;
  huge.requested = huge.charged = Bytes(UINT64_MAX - 511);
  for (uint32_t i = 0; i < 4; ++i) {
    huge.allocation = AllocationId(1'000'000 + i);
    huge.ledger = LedgerId(i);
    huge.kind = RecordKind::kMapped;
    trace.Add(huge), trace.Add(huge);
    huge.kind = RecordKind::kAllocate;
    trace.Add(huge);
    TraceEntry& peak = trace.Add(EntryKind::kSnapshotPeak);
    peak.record.ledger = LedgerId(i), peak.value = UINT64_MAX;
    TraceEntry& share = trace.Add(EntryKind::kSnapshotPeakShare);
    share.record.ledger = LedgerId(i), share.value = UINT64_MAX;
  }
  trace.Allocate(1, 512);
  const LeakReport report = ReportOf(trace, WithBlocks());
  EXPECT_EQ(report.live, 512_B);
  EXPECT_THAT(ToText(report, true), HasSubstr("SUMMARY"));
}

TEST(ReportTest, AFreeThatIsReadBeforeItsAllocationLeavesNothingLive) {
  HandMadeTrace trace;
  trace.Free(1);  // another thread's, at the very time
  EXPECT_EQ(trace.Allocate(1, 512), 1u);
  EXPECT_TRUE(ReportOf(trace).live.is_zero());
}

// ---- how it is shown -------------------------------------------------------------------------------------------------------

HandMadeTrace Superseded() {
  HandMadeTrace trace;
  for (uint32_t layer = 0; layer < 4; ++layer) {
    trace.Name(layer + 1, fmt::format("load/layers.{}.up.weight", layer));
    const uint64_t block = trace.Allocate(layer + 1, 33'554'432, Role::kSource, 9);
    trace.Fact(block, FactKind::kHolder, "local 'value' of convert() in leaky_load.py:31");
    trace.Fact(block, FactKind::kHolder, fmt::format("'layers.{}.up.weight' of kept", layer));
    trace.Fact(block, FactKind::kTensor, "float16 [4096, 4096]");
    trace.Lineage(layer + 1, true), trace.Lineage(layer + 1, false);
  }
  trace.SettleAll();
  return trace;
}

TEST(ReportTest, TextHasLeakSanitizersLineWithOwnerClassHoldersAndStackOnceForAllLayers) {
  HandMadeTrace trace = Superseded();
  const std::string text = ToText(ReportOf(trace), false);
  EXPECT_THAT(text, HasSubstr("Superseded leak of 134.2 MB in 4 objects, owner load/layers.{0-3}.up.weight [source], float16 [4096, 4096], oldest"));
  EXPECT_THAT(text, HasSubstr("held by  local 'value' of convert() in leaky_load.py:31\n"));
  EXPECT_THAT(text, HasSubstr("'layers.{0-3}.up.weight' of kept\n"));
  EXPECT_THAT(text, HasSubstr("allocated from:\n    #0  f9()  code.cc:9\n"));
  EXPECT_THAT(text, HasSubstr("SUMMARY: gpuledger: 134.2 MB leaked in 4 objects"));
}

TEST(ReportTest, RulesTakeLeaksOutAndSayHowMany) {
  HandMadeTrace trace = Superseded();
  ReportOptions options;
  options.suppressions = Suppressions::Parse("owner:load/**\n").value();
  const LeakReport report = ReportOf(trace, options);
  EXPECT_FALSE(HasLeaks(report));
  EXPECT_EQ(report.leaks[0].suppressed_by, "owner:load/**");
  EXPECT_THAT(ToText(report, false), HasSubstr("Suppressed by rules"));
}

TEST(ReportTest, RedactedItTellsNoNameAndNoPath) {
  HandMadeTrace trace = Superseded();
  trace.its_info().command = "python secret.py";
  trace.its_info().version = 1;
  trace.its_info().process = 4711;
  ReportOptions options;
  options.redact = options.blocks = true;
  const LeakReport report = ReportOf(trace, options);
  for (const std::string& shown : {ToText(report, false), ToJson(report)}) {
    for (const char* const name : {"layers", "up.weight", "convert", "leaky_load", "code.cc", "f9", "secret", "4711"}) EXPECT_THAT(shown, Not(HasSubstr(name)));
  }
  EXPECT_EQ(report.live.count(), 4u * 33'554'432);
  std::set<std::string> owners;
  for (const LeakGroup& leak : report.leaks) owners.insert(leak.owner);
  EXPECT_EQ(owners.size(), 4u) << "the same name is the same word, and different ones are not";
}

TEST(ReportTest, NamesCannotDriveATerminal) {
  HandMadeTrace trace;
  trace.Name(1, "evil\x1b[2Jname\n");
  trace.Allocate(1, 512);
  trace.ProgramEnded();
  const std::string text = ToText(ReportOf(trace), false);
  EXPECT_THAT(text, HasSubstr("evil?[2Jname?"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace gpuledger
