#include "gpuledger/ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace gpuledger {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const DeviceId kDevice{0};

class ManualClock : public Clock {
 public:
  TimePoint now() const override { return TimePoint(time); }
  uint64_t time = 0;
};

class KeepRecords : public RecordSink {
 public:
  void Write(const Record& record) noexcept override {
    const std::lock_guard lock(mutex);
    records.push_back(record);
  }
  std::mutex mutex;
  std::vector<Record> records;
};

class LedgerTest : public ::testing::Test {
 protected:
  ~LedgerTest() override { EXPECT_TRUE(ledger.CheckInvariants().ok()) << ledger.CheckInvariants(); }
  Charge Pay(std::string_view owner, Role role, Bytes size) {
    return ledger.Debit({{InternOwner(owner), role}, size, SizeClass::For(size).charged(), Stream::Default(kDevice),
                         DevicePtr(kDevice, next_address += 1 << 20)});
  }
  Bytes AtPeak(std::string_view owner) { return ledger.usage(InternOwner(owner)).at_device_peak; }

  ManualClock clock;
  KeepRecords sink;
  Ledger ledger{kDevice, clock, &sink};
  uint64_t next_address = 0;
};

TEST_F(LedgerTest, AChargeIsOfTheTransientScopeItWasMadeInUntilItIsTransferred) {
  const ScopeId scope{7};
  const Payer payer{InternOwner("ledger/t"), Role::kScratch, scope};
  const Charge charge = ledger.Debit({payer, 100_B, 512_B, Stream::Default(kDevice), DevicePtr(kDevice, 512)});
  EXPECT_EQ(charge.info().payer.scope, scope);
  EXPECT_EQ(ledger.live()[0].payer.scope, scope);
  ledger.Transfer(charge, {payer.owner, payer.role});  // adopted, under its own name
  EXPECT_EQ(ledger.moment().live[0].payer.scope, ScopeId(0));
  EXPECT_EQ(ledger.usage(payer.owner).in_use, 512_B);
  ASSERT_EQ(sink.records.size(), 2u);
  EXPECT_EQ(sink.records[0].scope, scope);
  EXPECT_EQ(sink.records[1].scope, ScopeId(0));
}

TEST_F(LedgerTest, AMomentIsAllOfTheLedger) {
  const Charge charge = Pay("ledger/m", Role::kSource, 1000_B);
  ledger.OpenLineage(InternOwner("ledger/m"));
  ledger.OpenLineage(InternOwner("ledger/n"));
  ledger.CloseLineage(InternOwner("ledger/n"));
  const LedgerMoment moment = ledger.moment();
  EXPECT_EQ(moment.usage.in_use, 1024_B);
  ASSERT_EQ(moment.live.size(), 1u);
  EXPECT_EQ(moment.live[0].id, charge.info().id);
  EXPECT_THAT(moment.open_lineages, ElementsAre(InternOwner("ledger/m")));
  EXPECT_THAT(moment.closed_lineages, ElementsAre(InternOwner("ledger/n")));
}

TEST_F(LedgerTest, CreditsTheOwnerWhenTheChargeDies) {
  const OwnerId owner = InternOwner("ledger/a");
  {
    const Charge charge = Pay("ledger/a", Role::kSource, 1000_B);
    EXPECT_EQ(ledger.usage(owner).in_use, 1024_B);
    EXPECT_EQ(ledger.usage(owner).requested, 1000_B);
    EXPECT_EQ(ledger.usage(owner, Role::kSource).count, 1u);
    EXPECT_EQ(ledger.usage(owner, Role::kStaging).count, 0u);
  }
  EXPECT_EQ(ledger.usage(owner).in_use, 0_B);
  EXPECT_EQ(ledger.usage(owner).peak, 1024_B);
}

TEST_F(LedgerTest, SumsOwnersAndRolesToTheDevice) {
  const Charge a = Pay("ledger/a", Role::kSource, 512_B), b = Pay("ledger/b", Role::kSource, 1024_B);
  const Charge c = Pay("ledger/a", Role::kQuantized, 2048_B);
  EXPECT_EQ(ledger.usage().in_use, 3584_B);
  EXPECT_EQ(ledger.usage(Role::kSource).in_use, 1536_B);
  EXPECT_EQ(ledger.usage(InternOwner("ledger/a")).in_use, 2560_B);
}

TEST_F(LedgerTest, CountsPendingBytesWithTheirOwnerWithoutChargingIt) {
  const OwnerId owner = InternOwner("ledger/a");
  std::optional<Charge> charge(Pay("ledger/a", Role::kStaging, 512_B));
  charge->MakePending();
  EXPECT_EQ(ledger.usage(owner).in_use, 0_B);
  EXPECT_EQ(ledger.usage(owner).pending, 512_B);
  charge.reset();
  EXPECT_EQ(ledger.usage(owner).pending, 0_B);
}

TEST_F(LedgerTest, RemembersWhoWasLiveAtThePeak) {
  std::optional<Charge> a(Pay("ledger/a", Role::kSource, 1_MiB));
  std::optional<Charge> b(Pay("ledger/b", Role::kSource, 2_MiB));
  a.reset();
  const Charge c = Pay("ledger/c", Role::kSource, 512_B);  // below the peak: not part of it
  b.reset();
  EXPECT_EQ(ledger.usage().peak, 3_MiB);
  EXPECT_EQ(AtPeak("ledger/a"), 1_MiB);
  EXPECT_EQ(AtPeak("ledger/b"), 2_MiB);
  EXPECT_EQ(AtPeak("ledger/c"), 0_B);
  const std::vector<OwnerUsage> rows = ledger.live_at_peak();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(OwnerName(rows[0].payer.owner), "ledger/b");
  ledger.ResetPeak();
  EXPECT_EQ(ledger.usage().peak, 512_B);
  EXPECT_EQ(AtPeak("ledger/c"), 512_B);
}

TEST_F(LedgerTest, TransfersABlockNowAndInWhoWasLiveAtThePeak) {
  std::optional<Charge> a(Pay("ledger/a", Role::kOther, 1_MiB));
  std::optional<Charge> b(Pay("ledger/a", Role::kOther, 2_MiB));
  b.reset();
  ledger.Transfer(*a, {InternOwner("ledger/named"), Role::kSource});
  EXPECT_EQ(ledger.usage(InternOwner("ledger/named"), Role::kSource).in_use, 1_MiB);
  EXPECT_EQ(ledger.usage(InternOwner("ledger/a")).in_use, 0_B);
  EXPECT_EQ(AtPeak("ledger/named"), 1_MiB);
  EXPECT_EQ(AtPeak("ledger/a"), 2_MiB);  // what was freed under the old name keeps it
  const Charge late = Pay("ledger/a", Role::kOther, 512_B);
  ledger.Transfer(late, {InternOwner("ledger/named"), Role::kSource});
  EXPECT_EQ(AtPeak("ledger/named"), 1_MiB);
  EXPECT_EQ(sink.records.back().kind, RecordKind::kTransfer);
  EXPECT_EQ(sink.records.back().owner, InternOwner("ledger/named"));
}

TEST_F(LedgerTest, RecordsEveryChangeInSequence) {
  clock.time = 7;
  {
    std::optional<Charge> a(Pay("ledger/a", Role::kSource, 100_B));
    a->MakePending();
  }
  { const Charge b = Pay("ledger/b", Role::kSource, 100_B); }
  std::vector<RecordKind> kinds;
  uint64_t sequence = 0;
  for (const Record& r : sink.records) {
    EXPECT_EQ(r.sequence, ++sequence);
    EXPECT_EQ(r.time, TimePoint(7));
    kinds.push_back(r.kind);
  }
  EXPECT_THAT(kinds, ElementsAre(RecordKind::kAllocate, RecordKind::kFreeRequested, RecordKind::kFreeCompleted,
                                 RecordKind::kAllocate, RecordKind::kFreeRequested, RecordKind::kFreeCompleted));
}

TEST_F(LedgerTest, HasNoVerdictOnAWeightWhoseLineageIsOpen) {
  const OwnerId weight = InternOwner("ledger/w.weight");
  EXPECT_THAT(std::string(ledger.residual(weight).status().message()), HasSubstr("undecided"));
  ledger.OpenLineage(weight);
  EXPECT_EQ(ledger.open_lineages(), 1u);
  EXPECT_EQ(ledger.residual(weight).status().code(), absl::StatusCode::kFailedPrecondition);
  ledger.CloseLineage(weight);
  EXPECT_EQ(ledger.open_lineages(), 0u);
  EXPECT_EQ(ledger.residual(weight)->bytes, 0_B);
}

TEST_F(LedgerTest, NamesTheSourceAndStagingBytesThatOutliveALineage) {
  const OwnerId weight = InternOwner("ledger/w.weight");
  ledger.OpenLineage(weight);
  const Charge source = Pay("ledger/w.weight", Role::kSource, 2048_B);
  std::optional<Charge> staging(Pay("ledger/w.weight", Role::kStaging, 512_B));
  const Charge quantized = Pay("ledger/w.weight", Role::kQuantized, 1024_B);
  ledger.CloseLineage(weight);
  EXPECT_EQ(ledger.residual(weight)->bytes, 2560_B);
  staging->MakePending();  // freed, but not yet complete: still residual
  EXPECT_EQ(ledger.residual(weight)->bytes, 2560_B);
  staging.reset();
  const absl::StatusOr<Residual> residual = ledger.residual(weight);
  ASSERT_EQ(residual->allocations.size(), 1u);
  EXPECT_EQ(residual->allocations[0].id, source.info().id);
  EXPECT_EQ(ledger.residuals().size(), 1u);
  EXPECT_EQ(ledger.lineage(weight).staging.charged_ever, 512_B);
}

TEST_F(LedgerTest, StaysExactWithManyThreads) {
  constexpr int kThreads = 4, kRounds = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      const OwnerId owner = InternOwner("ledger/thread." + std::to_string(t));
      for (int i = 0; i < kRounds; ++i) {
        Charge charge = ledger.Debit({{owner, Role::kActivation}, 512_B, 512_B, Stream::Default(kDevice), DevicePtr(kDevice, 512)});
        if (i % 2 == 0) charge.MakePending();
        EXPECT_LE(ledger.usage(owner).count, 1u);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(ledger.usage().in_use, 0_B);
  EXPECT_LE(ledger.usage().peak, Bytes(512u) * static_cast<uint64_t>(kThreads));
  EXPECT_EQ(ledger.usage().charged_ever, Bytes(512u) * static_cast<uint64_t>(kThreads * kRounds));
}

TEST(LedgerDeathTest, EndsTheProgramWhenItDiesBeforeItsCharges) {
  EXPECT_DEATH(
      {
        ManualClock clock;
        auto ledger = std::make_unique<Ledger>(kDevice, clock);
        const Charge charge = ledger->Debit({{InternOwner("ledger/late"), Role::kOther}, 1_B, 512_B, Stream::Default(kDevice), DevicePtr(kDevice, 512)});
        ledger.reset();
      },
      "ends while 1 charge\\(s\\) live; the first is 512 B, owner ledger/late");
}

}  // namespace
}  // namespace gpuledger
