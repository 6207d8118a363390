// Schedules chosen against the ledger: real threads, stepped one operation at a time, so that each holds changes back as
// it would on its own; after every step the peaks must be those of a ledger that holds nothing back.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/ledger.h"
#include "naive_ledger.h"

namespace gpuledger {
namespace {

const DeviceId kDevice{0};

class CountingClock : public Clock {
 public:
  TimePoint now() const override { return TimePoint(++time_); }

 private:
  mutable std::atomic<uint64_t> time_ = 0;
};

// A thread that does one thing when told, and nothing in between.
class SteppedThread {
 public:
  SteppedThread() : thread_([this] { Run(); }) {}
  ~SteppedThread() {
    Do(nullptr);
    thread_.join();
  }
  void Do(std::function<void()> job) {
    job_ = std::move(job);
    go_.release();
    done_.acquire();
  }

 private:
  void Run() {
    for (bool more = true; more;) {
      go_.acquire();
      more = job_ != nullptr;
      if (more) job_();
      done_.release();
    }
  }
  std::function<void()> job_;
  std::binary_semaphore go_{0}, done_{0};
  std::thread thread_;
};

std::string ToText(const Usage& u) {
  return "in_use " + ToString(u.in_use) + ", requested " + ToString(u.requested) + ", pending " + ToString(u.pending) + ", peak " +
         ToString(u.peak) + ", at peak " + ToString(u.at_device_peak) + ", ever " + ToString(u.charged_ever) + ", " +
         std::to_string(u.count) + " + " + std::to_string(u.pending_count) + " charges";
}

class Schedule {
 public:
  Schedule(uint64_t seed, size_t threads, bool producer_and_consumer)
      : random_(seed), producer_and_consumer_(producer_and_consumer) {
    // Owners that share a slot of a shard, and owners that do not.
    for (int i = 0; i < 300; ++i) {
      const OwnerId owner = InternOwner("ledger_model/" + std::to_string(i));
      if (i % 128 < 2) owners_.push_back(owner.value());
    }
    naive_ = std::make_unique<NaiveLedger>(std::map<uint32_t, Bytes>{{owners_[0], 60_KiB}});
    ledger_.set_soft_cap(OwnerId(owners_[0]), 60_KiB, [this](const SoftCapCrossing& c) {
      EXPECT_GT(c.in_use, c.cap);
      EXPECT_EQ(ledger_.usage(c.owner).in_use, c.in_use);  // and the ledger can be asked from inside
      ++told_;
    });
    for (size_t i = 0; i < threads; ++i) threads_.push_back(std::make_unique<SteppedThread>());
  }
  ~Schedule() {
    threads_[0]->Do([this] { charges_.clear(); });
  }

  void Run(int steps) {
    for (step_ = 0; step_ < steps && !::testing::Test::HasFailure(); ++step_) {
      if (step_ % 400 == 0) fill_ = Below(100);
      if (step_ % 1500 == 1499) {  // a thread ends, another begins
        std::unique_ptr<SteppedThread>& thread = threads_[Below(threads_.size())];
        thread.reset();
        thread = std::make_unique<SteppedThread>();
      }
      Step();
      CheckPeaks();
      if (Below(40) == 0) CheckTotals();
    }
    CheckTotals();
  }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }
  SteppedThread& Any() { return *threads_[Below(threads_.size())]; }
  NaiveLedger::Key AnyPayer() {
    return {owners_[Below(owners_.size())], std::array{Role::kSource, Role::kStaging, Role::kActivation}[Below(3)]};
  }

  void Step() {
    const uint64_t dice = Below(1000);
    if (dice < 2 && dice < 1 + static_cast<uint64_t>(step_ % 2)) {
      ledger_.ResetPeak();
      naive_->ResetPeak();
    } else if (charges_.empty() || Below(100) < fill_) {
      Debit();
    } else {
      auto it = charges_.begin();
      std::advance(it, static_cast<int64_t>(Below(charges_.size())));
      const uint64_t id = it->first;
      SteppedThread& thread = producer_and_consumer_ ? *threads_.back() : Any();
      if (dice < 20) {
        const NaiveLedger::Key to = AnyPayer();
        thread.Do([&] { ledger_.Transfer(it->second, {OwnerId(to.first), to.second}); });
        naive_->Transfer(id, to);
      } else if (dice < 300 && !naive_->live().at(id).pending) {
        thread.Do([&] { it->second.MakePending(); });
        naive_->MakePending(id);
      } else {
        thread.Do([&] { charges_.erase(it); });
        naive_->Complete(id);
      }
    }
  }

  void Debit() {
    const NaiveLedger::Key payer = AnyPayer();
    const Bytes charged = 512_B * (1 + Below(Below(4) == 0 ? 64 : 4)), requested = charged - Bytes(Below(512));
    SteppedThread& thread = producer_and_consumer_ ? *threads_[Below(threads_.size() - 1)] : Any();
    thread.Do([&] {
      const Usage before = ledger_.usage(OwnerId(payer.first), payer.second);
      charges_.emplace(next_, ledger_.Debit({{OwnerId(payer.first), payer.second}, requested, charged, Stream::Default(kDevice),
                                             DevicePtr(kDevice, 512 * next_)}));
      const Usage after = ledger_.usage(OwnerId(payer.first), payer.second);
      EXPECT_GE(after.charged_ever, before.charged_ever + charged) << "a thread sees its own change at once";
    });
    naive_->Debit(next_, payer, charged, requested);
    ++next_;
  }

  // Without making anybody flush.
  void CheckPeaks() {
    const auto check = [&](const std::string& what, const Usage& real, const Usage& naive) {
      EXPECT_EQ(real.peak, naive.peak) << what << " at step " << step_;
      EXPECT_EQ(real.at_device_peak, naive.at_device_peak) << what << " at step " << step_;
    };
    ForAll(check);
    EXPECT_EQ(told_, naive_->crossings(owners_[0])) << "soft cap at step " << step_;
  }

  void CheckTotals() {
    EXPECT_TRUE(ledger_.CheckInvariants().ok()) << ledger_.CheckInvariants();
    ForAll([&](const std::string& what, const Usage& real, const Usage& naive) {
      EXPECT_EQ(ToText(real), ToText(naive)) << what << " at step " << step_;
    });
    Bytes at_peak;
    for (const OwnerUsage& row : ledger_.live_at_peak()) {
      at_peak += row.usage.at_device_peak;
      EXPECT_EQ(row.usage.at_device_peak, naive_->line({row.payer.owner.value(), row.payer.role}).at_device_peak);
    }
    EXPECT_EQ(at_peak, ledger_.usage().peak);
    std::map<uint64_t, bool> live;
    for (const LiveAllocation& a : ledger_.live()) live[a.address.address() / 512] = a.pending;
    EXPECT_EQ(live.size(), naive_->live().size());
    for (const auto& [id, charge] : naive_->live()) EXPECT_EQ(live[id], charge.pending);
  }

  template <class Check>
  void ForAll(Check check) {
    check("device", ledger_.usage(), naive_->device());
    for (const Role role : {Role::kSource, Role::kStaging, Role::kActivation}) {
      check(std::string(RoleName(role)), ledger_.usage(role), naive_->role(role));
      for (const uint32_t owner : owners_) {
        check(std::string(OwnerName(OwnerId(owner))) + std::string(RoleName(role)), ledger_.usage(OwnerId(owner), role),
              naive_->line({owner, role}));
      }
    }
    for (const uint32_t owner : owners_) {
      check(std::string(OwnerName(OwnerId(owner))), ledger_.usage(OwnerId(owner)), naive_->owner(owner));
    }
  }

  std::mt19937_64 random_;
  const bool producer_and_consumer_;
  CountingClock clock_;
  Ledger ledger_{kDevice, clock_};
  std::unique_ptr<NaiveLedger> naive_;
  std::vector<uint32_t> owners_;
  std::vector<std::unique_ptr<SteppedThread>> threads_;
  std::map<uint64_t, Charge> charges_;
  uint64_t next_ = 1, told_ = 0, fill_ = 50;
  int step_ = 0;
};

uint64_t Seed() {
  const char* given = std::getenv("GPULEDGER_MODEL_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("GPULEDGER_MODEL_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

TEST(LedgerModelTest, EqualsALedgerThatHoldsNothingBackWhateverTheSchedule) {
  const uint64_t seed = Seed();
  for (uint64_t round = 0; round < 4 && !HasFailure(); ++round) Schedule(seed + round, 2 + round, false).Run(4000);
}

TEST(LedgerModelTest, EqualsALedgerThatHoldsNothingBackWhenOneThreadFreesWhatOthersAllocate) {
  const uint64_t seed = Seed();
  for (uint64_t round = 0; round < 3 && !HasFailure(); ++round) Schedule(seed + round, 2 + round, true).Run(4000);
}

}  // namespace
}  // namespace gpuledger
