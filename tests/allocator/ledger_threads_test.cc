// The ledger with threads that run freely, end, come after the end of their thread-local objects, or stay behind a fork.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/ledger.h"

namespace gpuledger {
namespace {

const DeviceId kDevice{0};

class CountingClock : public Clock {
 public:
  TimePoint now() const override { return TimePoint(time_.fetch_add(1, std::memory_order_relaxed)); }

 private:
  mutable std::atomic<uint64_t> time_ = 1;
};

class LedgerThreadsTest : public ::testing::Test {
 protected:
  ~LedgerThreadsTest() override { EXPECT_TRUE(ledger.CheckInvariants().ok()) << ledger.CheckInvariants(); }
  Charge Pay(OwnerId owner, Bytes size = 512_B, Role role = Role::kActivation) {
    return ledger.Debit({{owner, role}, size, size, Stream::Default(kDevice), DevicePtr(kDevice, 512)});
  }
  // Makes a peak, and room below it to hold changes back.
  void MakeRoom(OwnerId owner, Bytes size = 1_MiB, Role role = Role::kActivation) { const Charge charge = Pay(owner, size, role); }

  CountingClock clock;
  Ledger ledger{kDevice, clock};
};

TEST_F(LedgerThreadsTest, EndsWithTheSumOfAllThreadsAndPeaksNoHigherThanWhatTheyHeldAtOnce) {
  constexpr uint64_t kThreads = 6, kRounds = 3000, kMost = 20;
  std::atomic<uint64_t> left_in_use = 0;
  std::mutex handed_over_mutex;
  std::vector<Charge> handed_over;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::vector<Charge> mine;
      for (uint64_t i = 0; i < kRounds; ++i) {
        const OwnerId owner = InternOwner("ledger_threads/" + std::to_string(random() % 5));
        if (mine.size() < kMost && random() % 2 == 0) mine.push_back(Pay(owner, 512_B * (1 + random() % 8)));
        if (!mine.empty() && random() % 2 == 0) {
          if (random() % 4 == 0) mine.back().MakePending();
          const std::lock_guard lock(handed_over_mutex);
          if (random() % 3 == 0 && handed_over.size() < 50) handed_over.push_back(std::move(mine.back()));
          mine.pop_back();
        }
        std::optional<Charge> theirs;
        if (random() % 8 == 0) {
          const std::lock_guard lock(handed_over_mutex);
          if (!handed_over.empty()) {
            theirs.emplace(std::move(handed_over.back()));
            handed_over.pop_back();
          }
        }
        if (i % 500 == 0) {
          EXPECT_TRUE(ledger.CheckInvariants().ok());
          EXPECT_LE(ledger.usage(owner).in_use, ledger.usage().peak);
        }
      }
      left_in_use += mine.size();
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(ledger.live().size(), handed_over.size());
  EXPECT_LE(ledger.usage().peak, 4_KiB * (kThreads * (kMost + 1) + 51));
  handed_over.clear();
  ledger.Flush();
  EXPECT_EQ(ledger.usage().in_use, 0_B);
  EXPECT_EQ(ledger.usage().pending_count, 0u);
}

TEST_F(LedgerThreadsTest, MakesAPeakOfExactlyWhatAllThreadsHoldAtOnce) {
  constexpr int kThreads = 5;
  const OwnerId owner = InternOwner("ledger_threads/latch");
  MakeRoom(owner, 1024_B);
  for (int round = 0; round < 50; ++round) {
    std::latch all_hold(kThreads);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 20; ++i) const Charge charge = Pay(owner);
        const Charge held = Pay(owner);
        all_hold.arrive_and_wait();
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(ledger.usage(owner).peak, Bytes(512u) * uint64_t{kThreads});
    EXPECT_EQ(ledger.usage().at_device_peak, Bytes(512u) * uint64_t{kThreads});
  }
}

TEST_F(LedgerThreadsTest, ShowsAThreadItsOwnChangesAtOnceAndThoseOfOthersAfterAFlush) {
  const OwnerId owner = InternOwner("ledger_threads/own");
  MakeRoom(owner);
  std::optional<Charge> theirs;
  std::latch charged(1), seen(1);
  std::thread other([&] {
    for (int i = 0; i < 10; ++i) const Charge charge = Pay(owner);  // below the peak for a while: it holds back
    theirs.emplace(Pay(owner, 1024_B));
    EXPECT_EQ(ledger.usage(owner).in_use, 1024_B);
    charged.count_down();
    seen.wait();
  });
  charged.wait();
  for (int i = 0; i < 10; ++i) {
    const Usage before = ledger.usage(owner);
    const Charge mine = Pay(owner);
    const Usage after = ledger.usage(owner);
    EXPECT_GE(after.charged_ever, before.charged_ever + 512_B);  // more if this made the other thread tell
    EXPECT_GE(after.count, before.count + 1);
  }
  ledger.Flush();
  EXPECT_EQ(ledger.usage(owner).in_use, 1024_B);
  EXPECT_EQ(ledger.usage(owner, Role::kActivation).count, 1u);
  EXPECT_EQ(ledger.usage(Role::kActivation).in_use, 1024_B);
  seen.count_down();
  other.join();
  theirs.reset();
}

TEST_F(LedgerThreadsTest, CountsWhatAThreadHeldBackWhenItEnds) {
  const OwnerId owner = InternOwner("ledger_threads/ends");
  MakeRoom(owner);
  std::vector<Charge> charges;
  for (int t = 0; t < 50; ++t) {
    std::thread([&] {
      for (int i = 0; i < 10; ++i) charges.push_back(Pay(owner));
    }).join();
    EXPECT_EQ(ledger.usage(owner).count, charges.size());  // no flush: the end of the thread was one
  }
  EXPECT_EQ(ledger.usage(owner).in_use, 256000_B);
}

TEST_F(LedgerThreadsTest, LetsThreadsEndAfterTheLedgerThatTheyUsed) {
  std::latch charged(1), ended(1);
  auto other = std::make_unique<Ledger>(kDevice, clock);
  std::thread thread([&] {
    const OwnerId owner = InternOwner("ledger_threads/ends");
    { const Charge charge = other->Debit({{owner, Role::kOther}, 1_B, 512_B, Stream::Default(kDevice), DevicePtr(kDevice, 512)}); }
    charged.count_down();
    ended.wait();
  });
  charged.wait();
  other.reset();
  ended.count_down();
  thread.join();
}

// Thread-local, and made before the ledger's own: so it dies after them.
struct LateCharge {
  ~LateCharge() {
    charge.reset();
    if (again) again();
  }
  std::optional<Charge> charge;
  std::function<void()> again;
};

TEST_F(LedgerThreadsTest, TakesCallsOfAThreadWhoseThreadLocalObjectsAreGone) {
  const OwnerId owner = InternOwner("ledger_threads/late");
  MakeRoom(owner);
  for (int t = 0; t < 3; ++t) {
    std::thread([&] {
      thread_local LateCharge late;
      late.again = [&] {
        const Charge charge = Pay(owner, 1024_B);
        EXPECT_EQ(ledger.usage(owner).in_use, 1024_B);
      };
      for (int i = 0; i < 10; ++i) late.charge.reset(), late.charge.emplace(Pay(owner));
    }).join();
    EXPECT_EQ(ledger.usage(owner).in_use, 0_B);
  }
  EXPECT_EQ(ledger.usage(owner).charged_ever, 1_MiB + (5120_B + 1024_B) * 3u);
}

class NamedRecords : public RecordSink {
 public:
  void Write(const Record& record) noexcept override {
    const std::lock_guard lock(mutex);
    if (!names.emplace(record.thread.value(), record.sequence).second) ++twice;
  }
  std::mutex mutex;
  std::set<std::pair<uint32_t, uint64_t>> names;
  int twice = 0;
};

TEST_F(LedgerThreadsTest, NamesEveryRecordByThreadAndSequenceThoughThreadsAdoptAndEnd) {
  NamedRecords sink;
  Ledger recorded(kDevice, clock, &sink);
  const OwnerId owner = InternOwner("ledger_threads/records");
  const auto pay = [&] {
    return recorded.Debit({{owner, Role::kOther}, 1_B, 512_B, Stream::Default(kDevice), DevicePtr(kDevice, 512)});
  };
  for (int t = 0; t < 10; ++t) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        thread_local LateCharge late;
        late.again = [&] { const Charge charge = pay(); };
        for (int n = 0; n < 20; ++n) const Charge charge = pay();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(sink.twice, 0);
  EXPECT_EQ(sink.names.size(), 10u * 3u * 21u * 3u);
}

TEST_F(LedgerThreadsTest, CountsInAForkedChildWhatTheOtherThreadsHeldBack) {
  const OwnerId owner = InternOwner("ledger_threads/fork");
  MakeRoom(owner);
  std::optional<Charge> theirs;
  std::latch charged(1), forked(1);
  std::thread other([&] {
    for (int i = 0; i < 10; ++i) const Charge charge = Pay(owner);
    theirs.emplace(Pay(owner, 2048_B));
    charged.count_down();
    forked.wait();
  });
  charged.wait();
  ledger.LockForFork();
  const pid_t child = fork();
  if (child == 0) {
    ledger.UnlockAfterFork();
    ledger.ForgetOtherThreads();
    const bool counted = ledger.usage(owner).in_use == 2048_B && ledger.CheckInvariants().ok();
    theirs.reset();
    const Charge mine = Pay(owner);
    _exit(counted && ledger.usage(owner).in_use == 512_B && ledger.CheckInvariants().ok() ? 0 : 1);
  }
  ledger.UnlockAfterFork();
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  forked.count_down();
  other.join();
  theirs.reset();
}

TEST_F(LedgerThreadsTest, TellsOfASoftCapOncePerCrossingWhicheverThreadMakesIt) {
  const OwnerId owner = InternOwner("ledger_threads/capped");
  MakeRoom(owner);
  std::atomic<int> told = 0;
  ledger.set_soft_cap(owner, 4096_B, [&](const SoftCapCrossing& crossing) {
    EXPECT_EQ(crossing.owner, owner);
    EXPECT_GT(crossing.in_use, 4096_B);
    const Charge inside = Pay(InternOwner("ledger_threads/callback"));  // no lock is held
    ++told;
  });
  for (int round = 1; round <= 20; ++round) {
    std::latch all_hold(4);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        const Charge a = Pay(owner), b = Pay(owner), c = Pay(owner);  // 6 KiB in all
        all_hold.arrive_and_wait();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(told, round);
  }
  ledger.set_soft_cap(owner, 0_B, nullptr);
  const Charge more = Pay(owner, 8192_B);
  EXPECT_EQ(told, 20);
}

TEST_F(LedgerThreadsTest, HoldsTenThousandOwners) {
  std::vector<OwnerId> owners;
  for (int i = 0; i < 10'000; ++i) owners.push_back(InternOwner("ledger_threads/many." + std::to_string(i)));
  std::vector<Charge> charges;
  for (const OwnerId owner : owners) charges.push_back(Pay(owner));
  EXPECT_EQ(ledger.usage().peak, 512_B * 10'000u);
  charges.clear();
  for (const OwnerId owner : owners) charges.push_back(Pay(owner));
  for (const OwnerId owner : owners) EXPECT_EQ(ledger.usage(owner).in_use, 512_B);
  EXPECT_EQ(ledger.usage().peak, 512_B * 10'000u);
  EXPECT_EQ(ledger.live_at_peak().size(), 10'000u);
  EXPECT_EQ(ledger.live(owners[5000]).size(), 1u);
}

}  // namespace
}  // namespace gpuledger
