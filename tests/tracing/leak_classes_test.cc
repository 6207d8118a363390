// Each class of leak, planted in hand-made blocks and in this process, beside something alike that is none.
#include "gpuledger/leak_classes.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/gpuledger_tracing.h"
#include "gpuledger/host_upstream.h"
#include "gpuledger/process.h"
#include "gpuledger/recorder.h"
#include "gpuledger/settle.h"
#include "gpuledger/trace_reader.h"

namespace gpuledger {
namespace {

// ---- hand-made blocks ----------------------------------------------------------------------------------------------------

LiveBlock Made(std::string_view owner, Role role) {
  static uint64_t ids = 0;
  LiveBlock block;
  block.id = AllocationId(++ids);
  block.allocated = TimePoint(ids);
  block.payer = {InternOwner(owner), role};
  block.requested = 1000_B;
  block.charged = 1024_B;
  return block;
}

VerdictContext Settled() {
  VerdictContext context;
  context.settled = true;
  return context;
}

// "scope escape: error", or "kept, undecided".
std::string Of(const LiveBlock& block, const VerdictContext& context, std::vector<LiveBlock> others = {}) {
  others.insert(others.begin(), block);
  const BlockVerdict verdict = Classify(others, context)[0];
  const char* const severities[] = {"", ": info", ": warning", ": error"};
  return std::string(LeakClassName(verdict.leak_class)) + severities[static_cast<size_t>(verdict.severity)] + (verdict.undecided ? ", undecided" : "");
}

TEST(ClassifyTest, WhatIsLeftByAProgramThatEndedUnsettledIsUnbalanced) {
  VerdictContext ended;
  ended.ended = true;
  LiveBlock block = Made("u", Role::kOther);
  EXPECT_EQ(Of(block, ended), "unbalanced: error");
  block.pending = true;
  EXPECT_EQ(Of(block, ended), "deferred") << "the program freed it";
  block.pending = false;
  EXPECT_EQ(Of(block, {}), "kept, undecided") << "killed: nobody knows whether it would have freed it";
  ended.settled = true;
  EXPECT_EQ(Of(block, ended), "kept") << "it settled, and may keep its globals to its end";
}

TEST(ClassifyTest, ASettleTellsLostCyclesAndTracebacksApart) {
  LiveBlock lost = Made("s", Role::kOther);
  lost.unreachable = true;
  EXPECT_EQ(Of(lost, Settled()), "lost: error");
  EXPECT_EQ(Of(lost, {}), "kept, undecided");
  lost.gone = true;
  lost.gone_by = SettleStep::kEnd;
  EXPECT_EQ(Of(lost, Settled()), "kept") << "somebody did find it";

  LiveBlock cycle = Made("s", Role::kOther);
  cycle.gone = true;
  cycle.gone_by = SettleStep::kCollected;
  EXPECT_EQ(Of(cycle, Settled()), "cycle: warning");
  for (const SettleStep step : {SettleStep::kCompleted, SettleStep::kReleased, SettleStep::kEnd}) {
    cycle.gone_by = step;
    EXPECT_EQ(Of(cycle, Settled()), "kept") << "freed by the program, or a workspace";
  }

  LiveBlock held = Made("s", Role::kOther);
  held.tracebacks = {"frame of f()"};
  EXPECT_EQ(Of(held, Settled()), "traceback-held: error");
  EXPECT_EQ(Of(held, {}), "kept, undecided");
  held.holders = std::exchange(held.tracebacks, {});
  EXPECT_EQ(Of(held, Settled()), "kept") << "a holder that is no traceback";
}

TEST(ClassifyTest, ATransientBlockEscapesWhenItsScopeIsOverAndNobodyAdoptedIt) {
  VerdictContext context = Settled();
  context.ended_scopes = {ScopeId(3), ScopeId(9)};
  LiveBlock block = Made("t", Role::kScratch);
  block.payer.scope = ScopeId(9);
  EXPECT_EQ(Of(block, context), "scope escape: error");
  VerdictContext unsettled = context;
  unsettled.settled = false;
  EXPECT_EQ(Of(block, unsettled), "scope escape: error") << "declared: no settle is needed to know";
  block.payer.scope = ScopeId(4);
  EXPECT_EQ(Of(block, context), "kept") << "its scope is open";
  block.payer.scope = ScopeId(0);
  EXPECT_EQ(Of(block, context), "kept") << "adopted";
}

TEST(ClassifyTest, ASourceOutlivesItsLineage) {
  VerdictContext context = Settled();
  context.closed_lineages = {InternOwner("w/1")};
  for (const Role role : {Role::kSource, Role::kStaging}) EXPECT_EQ(Of(Made("w/1", role), context), "superseded: error");
  EXPECT_EQ(Of(Made("w/1", Role::kQuantized), context), "kept") << "what superseded it";
  EXPECT_EQ(Of(Made("w/2", Role::kSource), context), "kept") << "another weight";
}

TEST(ClassifyTest, UndeclaredSupersessionIsAWarningWhereTheSignsAreNarrow) {
  const LiveBlock source = Made("w/3", Role::kSource), quantized = Made("w/3", Role::kQuantized);
  EXPECT_EQ(Of(source, Settled(), {quantized}), "superseded: warning");
  EXPECT_EQ(Of(quantized, Settled(), {source}), "kept");
  EXPECT_EQ(Of(source, {}, {quantized}), "kept, undecided");
  VerdictContext under_way = Settled();
  under_way.open_lineages = {source.payer.owner};
  EXPECT_EQ(Of(source, under_way, {quantized}), "kept") << "it is being converted";

  LiveBlock half = Made("w/4", Role::kOther), full = Made("w/4", Role::kOther), third = Made("w/4", Role::kOther);
  half.tensor = "float16 [64, 64]";
  full.tensor = "float32 [64, 64]";
  EXPECT_EQ(Of(half, Settled(), {full}), "superseded: warning");
  EXPECT_EQ(Of(full, Settled(), {half}), "kept") << "the newer of the two";
  third.tensor = "bfloat16 [64, 64]";
  EXPECT_EQ(Of(half, Settled(), {full, third}), "kept") << "an owner of many tensors, not one weight";
  full.tensor = "float32 [64]";
  EXPECT_EQ(Of(half, Settled(), {full}), "kept") << "a weight and its bias";
  full.tensor = "float16 [64, 64]";
  EXPECT_EQ(Of(half, Settled(), {full}), "kept") << "two of one dtype";
  full.tensor = "float32 [64, 64]";
  full.payer.role = Role::kGradient;
  EXPECT_EQ(Of(half, Settled(), {full}), "kept") << "a weight and its gradient";
}

TEST(ClassifyTest, AViewPinsAStorageOfWhichItCoversLessThanHalf) {
  LiveBlock block = Made("v", Role::kOther);
  EXPECT_EQ(Of(block, Settled()), "kept") << "no view is known";
  block.largest_view = 499;
  EXPECT_EQ(Of(block, Settled()), "view-pinned: warning");
  EXPECT_EQ(Of(block, {}), "kept, undecided");
  block.largest_view = 500;
  EXPECT_EQ(Of(block, Settled()), "kept");
  block.requested = Bytes(UINT64_MAX);
  block.largest_view = UINT64_MAX / 2 - 1;
  EXPECT_EQ(Of(block, Settled()), "view-pinned: warning") << "without overflow";
}

TEST(ClassifyTest, TheFirstClassThatMatchesIsTheClass) {
  VerdictContext context = Settled();
  LiveBlock block = Made("w/5", Role::kSource);
  context.closed_lineages = {block.payer.owner};
  context.ended_scopes = {block.payer.scope = ScopeId(5)};
  block.largest_view = 1;
  EXPECT_EQ(Of(block, context), "scope escape: error");
  block.tracebacks = {"a frame"};
  EXPECT_EQ(Of(block, context), "traceback-held: error");
  block.unreachable = true;
  EXPECT_EQ(Of(block, context), "lost: error");
  block.pending = true;
  EXPECT_EQ(Of(block, context), "deferred");
}

// ---- this process --------------------------------------------------------------------------------------------------------

class SettleTest : public ::testing::Test {
 protected:
  ~SettleTest() override {
    for (const DevicePtr block : left) allocator->Free(block);
  }
  DevicePtr Take(std::string_view owner, Role role, Bytes size = 1000_B, uintptr_t stream = 0) {
    const OwnerScope scope(owner, role);
    return *allocator->AllocateRaw(size, Stream(DeviceId(0), reinterpret_cast<CUstream_st*>(stream)), SiteHere());
  }
  DevicePtr Keep(DevicePtr block) { return left.emplace_back(block); }

  LeakReport ReportOf(const Settle& settle, std::string_view suppressions = "") {
    ReportOptions options;
    options.suppressions = *Suppressions::Parse(suppressions);
    absl::StatusOr<LeakReport> report = settle.Report(options);
    EXPECT_TRUE(report.ok()) << report.status();
    return *std::move(report);
  }
  LeakReport ReportNow() {
    Settle settle;
    EXPECT_TRUE(settle.Complete().ok());
    settle.End();
    return ReportOf(settle);
  }
  // "class owner bytes", sorted.
  static std::vector<std::string> Leaks(const LeakReport& report) {
    std::vector<std::string> leaks;
    for (const LeakGroup& g : report.leaks) leaks.push_back(std::string(LeakClassName(g.leak_class)) + " " + g.owner + " " + std::to_string(g.bytes.count()));
    std::sort(leaks.begin(), leaks.end());
    return leaks;
  }
  static Bytes Class(const LeakReport& report, LeakClass which) { return report.classes[static_cast<size_t>(which)].bytes; }
  using Strings = std::vector<std::string>;

  HostAnonymousUpstream upstream;
  std::unique_ptr<CachingAllocator> allocator = std::make_unique<CachingAllocator>(upstream, AllocatorOptions());
  std::vector<DevicePtr> left;
};

TEST_F(SettleTest, NothingIsReportedOfWhatIsHeldOnPurpose) {
  Keep(Take("settle/model", Role::kOther, 5000_B));
  const LeakReport report = ReportNow();
  EXPECT_TRUE(report.settled);
  EXPECT_EQ(Leaks(report), Strings{});
  EXPECT_EQ(report.live, 5120_B);
  EXPECT_EQ(Class(report, LeakClass::kKept), 5120_B);
  ASSERT_EQ(report.kept.size(), 1u);
  EXPECT_EQ(report.kept[0].owner, "settle/model");
}

TEST_F(SettleTest, WithoutItsEndNothingIsDecided) {
  Keep(Take("settle/model", Role::kOther));
  Settle settle;
  EXPECT_FALSE(ReportOf(settle).settled);
  settle.End();  // and nobody waited for the streams
  EXPECT_EQ(ReportOf(settle).undecided.bytes, 1024_B);
  EXPECT_NE(ReportOf(settle).undecided_why, "");
}

TEST_F(SettleTest, PendingBlocksAreDeferredAndGoWithTheSettle) {
  FakeUpstream fake({.hold_fences = true});
  CachingAllocator held(fake, AllocatorOptions());
  const DevicePtr block = *held.AllocateRaw(1000_B, Stream::Default(DeviceId(0)));
  ASSERT_TRUE(held.RecordStream(block, Stream(DeviceId(0), reinterpret_cast<CUstream_st*>(0x20))).ok());
  held.Free(block);
  Settle settle;
  fake.PassAllFences();
  ASSERT_TRUE(settle.Complete().ok());
  settle.End();
  const LeakReport report = ReportOf(settle);
  EXPECT_EQ(report.pending, 1024_B);
  EXPECT_EQ(Class(report, LeakClass::kDeferred), 1024_B);
  EXPECT_EQ(Leaks(report), Strings{});
}

TEST_F(SettleTest, WhatGoesWithTheCollectorWasACycleAndWhatAnotherThreadFreesWasNot) {
  const DevicePtr cycle = Take("settle/cycle", Role::kOther), used = Take("settle/used", Role::kOther), late = Take("settle/late", Role::kOther);
  Settle settle;
  std::thread([&] { allocator->Free(used); }).join();
  ASSERT_TRUE(settle.Complete().ok());
  allocator->Free(cycle);
  settle.Collected();
  settle.Released();
  std::thread([&] { allocator->Free(late); }).join();
  const DevicePtr unrelated = Keep(Take("settle/new", Role::kOther));  // a total would not show that anything went
  settle.End();
  const LeakReport report = ReportOf(settle);
  EXPECT_EQ(Leaks(report), Strings{"cycle settle/cycle 1024"});
  EXPECT_EQ(report.live, 3072_B);
  EXPECT_EQ(Class(report, LeakClass::kKept), 2048_B);
  for (const Settle::Place& place : settle.places()) EXPECT_NE(place.address, unrelated.address()) << "born after the settle began";
}

TEST_F(SettleTest, FactsOfThisSettleDecideAndOlderHoldersExplain) {
  const DevicePtr block = Keep(Take("settle/facts", Role::kOther));
  const auto note = [&](FactKind kind, std::string_view text) { ASSERT_TRUE(Settle::NoteFact(block.address() + 7, kind, 0, text).ok()); };
  note(FactKind::kTraceback, "frame of old()");
  note(FactKind::kHolder, "global 'x'");
  note(FactKind::kHolder, "global 'x'");
  note(FactKind::kTensor, "float16 [500]");
  EXPECT_EQ(Leaks(ReportNow()), Strings{}) << "that traceback may be long gone";

  Settle settle;
  ASSERT_TRUE(settle.Complete().ok());
  note(FactKind::kTraceback, "frame of new()");
  settle.End();
  const LeakReport report = ReportOf(settle);
  ASSERT_EQ(Leaks(report), Strings{"traceback-held settle/facts 1024"});
  EXPECT_EQ(report.leaks[0].holders, (Strings{"frame of new()", "frame of old()", "global 'x'"}));
  EXPECT_EQ(report.leaks[0].tensor, "float16 [500]");
  ASSERT_EQ(report.leaks[0].stack.size(), 1u);
  EXPECT_EQ(report.leaks[0].stack[0].function, "Take");

  EXPECT_EQ(Settle::NoteFact(1, FactKind::kHolder, 0, "nobody").code(), absl::StatusCode::kNotFound);
  allocator->Free(left.back());
  left.pop_back();
  EXPECT_EQ(Settle::NoteFact(block.address(), FactKind::kHolder, 0, "late").code(), absl::StatusCode::kNotFound);
  Keep(Take("settle/again", Role::kOther));  // the same address, another allocation
  EXPECT_EQ(Leaks(ReportNow()), Strings{});
}

TEST_F(SettleTest, ABlockEscapesItsTransientScopeUnlessItIsAdopted) {
  DevicePtr adopted = DevicePtr::Null(DeviceId(0));
  {
    const OwnerScope step = OwnerScope::Transient("settle/step", Role::kScratch);
    Keep(Take("escaped", Role::kScratch));
    std::thread([this, payer = CurrentPayer()] {
      const OwnerScope carried(payer);
      Keep(Take("of_thread", Role::kScratch));
    }).join();
    adopted = Keep(Take("adopted", Role::kScratch));
    EXPECT_EQ(Leaks(ReportNow()), Strings{}) << "the scope is open";
  }
  Keep(Take("settle/step/later", Role::kScratch));
  Settle settle;
  ASSERT_TRUE(TransferInProcess(adopted.address(), {InternOwner("settle/owner"), Role::kOther}).ok());  // even now
  ASSERT_TRUE(settle.Complete().ok());
  settle.End();
  EXPECT_EQ(Leaks(ReportOf(settle)), (Strings{"scope escape settle/step/escaped 1024", "scope escape settle/step/of_thread 1024"}));
}

TEST_F(SettleTest, ASourceThatOutlivesItsLineageIsSupersededAndSuppressedByOwner) {
  const OwnerId weight = InternOwner("settle/layers.3.weight");
  ASSERT_TRUE(OpenProcessLineage(weight).ok());
  Keep(Take("settle/layers.3.weight", Role::kSource));
  Keep(Take("settle/layers.3.weight", Role::kQuantized));
  EXPECT_EQ(Leaks(ReportNow()), Strings{}) << "under way";
  ASSERT_TRUE(CloseProcessLineage(weight).ok());
  EXPECT_EQ(Leaks(ReportNow()), Strings{"superseded settle/layers.3.weight 1024"});
  EXPECT_EQ(ReportNow().leaks[0].severity, Severity::kError);

  Settle settle;
  ASSERT_TRUE(settle.Complete().ok());
  settle.End();
  EXPECT_EQ(ReportOf(settle, "owner:settle/*.*.weight").leaks[0].suppressed_by, "owner:settle/*.*.weight");
  EXPECT_EQ(ReportOf(settle, "leak:Tak*\nowner:**").leaks[0].suppressed_by, "leak:Tak*");
  EXPECT_EQ(ReportOf(settle, "owner:settle/*").leaks[0].suppressed_by, "");
}

TEST_F(SettleTest, AViewThatIsMuchSmallerThanItsStoragePinsIt) {
  const DevicePtr pinned = Keep(Take("settle/pinned", Role::kOther)), viewed = Keep(Take("settle/viewed", Role::kOther));
  Settle settle;
  ASSERT_TRUE(settle.Complete().ok());
  ASSERT_TRUE(Settle::NoteFact(pinned.address(), FactKind::kLargestView, 8, "").ok());
  ASSERT_TRUE(Settle::NoteFact(viewed.address(), FactKind::kLargestView, 900, "").ok());
  settle.End();
  EXPECT_EQ(Leaks(ReportOf(settle)), Strings{"view-pinned settle/pinned 1024"});
}

TEST_F(SettleTest, WorksFromC) {
  const DevicePtr block = Keep(Take("settle/c", Role::kOther));
  gpuledger_settle_state* settle = nullptr;
  ASSERT_EQ(gpuledger_settle_begin(&settle), GPULEDGER_OK);
  EXPECT_EQ(gpuledger_settle_complete(settle), GPULEDGER_OK);
  EXPECT_EQ(gpuledger_settle_collected(settle), GPULEDGER_OK);
  EXPECT_EQ(gpuledger_settle_released(settle), GPULEDGER_OK);
  uint64_t address = 0, size = 0, count = 0;
  EXPECT_EQ(gpuledger_settle_blocks(settle, &address, &size, 1, &count), GPULEDGER_OK);
  EXPECT_EQ(address, block.address());
  EXPECT_EQ(size, 1000u);
  EXPECT_EQ(count, 1u);
  EXPECT_EQ(gpuledger_fact(address, GPULEDGER_FACT_TRACEBACK, 0, "a frame"), GPULEDGER_OK);
  EXPECT_EQ(gpuledger_fact(1, GPULEDGER_FACT_HOLDER, 0, nullptr), GPULEDGER_NOT_FOUND);
  EXPECT_EQ(gpuledger_fact(address, 17, 0, nullptr), GPULEDGER_INVALID_ARGUMENT);
  EXPECT_EQ(gpuledger_settle_end(settle), GPULEDGER_OK);
  EXPECT_EQ(gpuledger_settle_end(nullptr), GPULEDGER_INVALID_ARGUMENT);
  std::string text(1 << 16, '\0');
  size_t needed = 0;
  int leaks = 0;
  EXPECT_EQ(gpuledger_settle_report(settle, nullptr, 1, text.data(), text.size(), &needed, &leaks), GPULEDGER_OK);
  EXPECT_EQ(leaks, 1);
  EXPECT_NE(text.find("\"traceback-held\""), std::string::npos) << text;
  EXPECT_EQ(gpuledger_settle_report(settle, "owner:settle/c", 0, text.data(), 10, &needed, &leaks), GPULEDGER_OK);
  EXPECT_EQ(leaks, 0) << "suppressed";
  EXPECT_GT(needed, 10u);
  EXPECT_EQ(text.find('\0'), 9u) << "cut, and ended";
  EXPECT_EQ(gpuledger_settle_report(settle, "leek:x", 0, text.data(), 10, &needed, &leaks), GPULEDGER_INVALID_ARGUMENT);
  gpuledger_settle_free(settle);
}

// ---- lost ----------------------------------------------------------------------------------------------------------------

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose shadows are terabytes that look like memory
// Whose address nobody keeps: not the caller, whose registers and frame never had it.
[[gnu::noinline]] void Lose(CachingAllocator& allocator, std::string_view owner, Bytes size) {
  const OwnerScope scope(owner, Role::kOther);
  ASSERT_TRUE(allocator.AllocateRaw(size, Stream::Default(DeviceId(0))).ok());
}
// Writes over what earlier calls have left on the stack.
[[gnu::noinline]] void ClearStack() {
  volatile char nothing[1 << 16];
  for (volatile char& c : nothing) c = 0;
}
void FreeAll(CachingAllocator& allocator) {
  for (const LiveAllocation& a : allocator.ledger().live()) allocator.Free(a.address);
}

TEST_F(SettleTest, ABlockIsLostIfItsAddressIsNowhereAndNotIfItIsOnTheHeapInAnotherThreadOrInTheMiddle) {
  // Addresses that no test had before this one: freed memory may still hold theirs.
  Keep(Take("settle/old", Role::kOther, 1000_B));
  Keep(Take("settle/old", Role::kOther, 3_MiB));
  const auto old = std::exchange(allocator, std::make_unique<CachingAllocator>(upstream, AllocatorOptions()));
  Lose(*allocator, "settle/lost_first", 1000_B);  // where the range begins: the upstream and the pool know that address too
  Lose(*allocator, "settle/lost", 1000_B);
  Lose(*allocator, "settle/lost_large", 3_MiB);
  const auto on_heap = std::make_unique<DevicePtr>(Take("settle/heap", Role::kOther));
  const auto in_the_middle = std::make_unique<uint64_t>(Take("settle/middle", Role::kOther).address() + 999);
  const auto in_buffer = std::make_unique<Buffer>(*allocator->Allocate(4_MiB, Stream::Default(DeviceId(0))));
  std::atomic<bool> ready = false, done = false;
  std::thread other([&] {
    volatile uint64_t on_stack = Take("settle/stack", Role::kOther).address();
    ready = true;
    while (!done) std::this_thread::yield();
    EXPECT_NE(on_stack, 0u);
  });
  while (!ready) std::this_thread::yield();
  ClearStack();
  Settle settle;
  ASSERT_TRUE(settle.Complete().ok());
  ASSERT_TRUE(settle.FindLost().ok());
  settle.End();
  done = true;
  other.join();
  EXPECT_EQ(Leaks(ReportOf(settle)), (Strings{"lost settle/lost 1024", "lost settle/lost_first 1024", "lost settle/lost_large 3145728"}));
  in_buffer->Reset();
  EXPECT_NE(*in_the_middle, on_heap->address());
  FreeAll(*allocator);
  FreeAll(*old);
  left.clear();

  gpuledger_settle_state* of_c = nullptr;
  ASSERT_EQ(gpuledger_settle_begin(&of_c), GPULEDGER_OK);
  EXPECT_EQ(gpuledger_settle_find_lost(of_c), GPULEDGER_OK);
  gpuledger_settle_free(of_c);
}
#endif

// ---- the trace -----------------------------------------------------------------------------------------------------------

TEST_F(SettleTest, StepsFactsAndEndedScopesAreInTheTraceOfTheProcess) {
  const std::string path = ::testing::TempDir() + "/gpuledger-settle-" + std::to_string(getpid()) + ".trace";
  ASSERT_TRUE(Recorder::StartOfProcess({.path = path}).ok());
  ScopeId scope{0};
  {
    const OwnerScope step = OwnerScope::Transient("settle/traced", Role::kScratch);
    scope = CurrentPayer().scope;
    Keep(Take("escaped", Role::kScratch));
  }
  Settle settle;
  ASSERT_TRUE(settle.Complete().ok());
  settle.Collected();
  settle.Released();
  ASSERT_TRUE(Settle::NoteFact(left[0].address(), FactKind::kHolder, 0, "global 'x'").ok());
  settle.End();

  const absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  AllocationId allocated{0}, fact_about{0};
  bool ended = false;
  std::vector<SettleStep> steps;
  TraceEntry entry;
  while ((*reader)->Next(&entry)) {
    if (entry.kind == EntryKind::kRecord && entry.record.kind == RecordKind::kAllocate && entry.record.scope == scope) allocated = entry.record.allocation;
    if (entry.kind == EntryKind::kScopeEnded) ended = ended || (entry.scope == scope && allocated != AllocationId(0));
    if (entry.kind == EntryKind::kSettle) steps.push_back(entry.settle);
    if (entry.kind == EntryKind::kFact && entry.text == "global 'x'") fact_about = entry.record.allocation;
  }
  EXPECT_NE(allocated, AllocationId(0));
  EXPECT_EQ(fact_about, allocated);
  EXPECT_TRUE(ended);
  EXPECT_EQ(steps, (std::vector{SettleStep::kBegin, SettleStep::kCompleted, SettleStep::kCollected, SettleStep::kReleased, SettleStep::kEnd}));
  unlink(path.c_str());
}

// ---- suppressions --------------------------------------------------------------------------------------------------------

TEST(SuppressionsTest, MatchesFramesByFunctionAndFileLikeLeakSanitizer) {
  const std::vector<TraceFrame> stack = {{false, "at::native::empty_cpu", "/usr/lib/libtorch_cpu.so", 0, 0, ""},
                                         {true, "convert", "leaky_load.py", 31, 0, ""}};
  const auto matches = [&](std::string_view rule) { return !Suppressions::Parse(rule)->Match("model/w", stack).empty(); };
  for (const char* rule : {"leak:empty_cpu", "leak:libtorch", "leak:at::*::empty", "leak:^convert$", "leak:^at::*cpu$", "leak:load.py$", "leak:leaky*py",
                           "owner:model/*", "owner:**", "  owner:model/w\r", "# nothing\n\nleak:conv"}) {
    EXPECT_TRUE(matches(rule)) << rule;
  }
  for (const char* rule : {"leak:^conver$", "leak:^load", "leak:convert*x", "leak:Convert", "owner:mod", "owner:*", "# leak:convert", ""}) {
    EXPECT_FALSE(matches(rule)) << rule;
  }
}

TEST(SuppressionsTest, ARuleEndsWithItsDay) {
  EXPECT_EQ(Suppressions::Parse("owner:a until=2999-12-31")->Match("a", {}), "owner:a until=2999-12-31");
  EXPECT_EQ(Suppressions::Parse("owner:a until=2001-01-01")->Match("a", {}), "");
  EXPECT_EQ(Suppressions::Parse("owner:a until=2001-01-01\nowner:*")->Match("a", {}), "owner:*");
}

TEST(SuppressionsTest, NamesTheLineThatIsWrong) {
  for (const char* text : {"owner:a\nleek:b", "#\nowner:", "\nleak:x until=tomorrow", "\nleak:x until=2026-02-30"}) {
    const absl::Status status = Suppressions::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("line 2"), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace gpuledger
