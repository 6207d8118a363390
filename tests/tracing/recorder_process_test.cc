// The recorder of a process: late starts, forks, ends of all kinds, and the limit of the file.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include <fmt/format.h>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/leak_report.h"
#include "gpuledger/owner.h"
#include "gpuledger/recorder.h"
#include "gpuledger/settle.h"
#include "gpuledger/trace_reader.h"

namespace gpuledger {
namespace {

const Stream kStream = Stream::Default(DeviceId{0});
#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadsAfterFork = false;
#else
constexpr bool kThreadsAfterFork = true;
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kRounds = 6;
#else
constexpr int kRounds = 20;
#endif

class RecorderProcessTest : public ::testing::Test {
 protected:
  RecorderProcessTest() { std::filesystem::create_directories(folder_); }
  ~RecorderProcessTest() override { std::filesystem::remove_all(folder_); }

  // Runs `body` in a child of its own; its exit code, or minus the signal.
  static int InChild(const std::function<void()>& body) {
    const pid_t child = fork();
    if (child == 0) {
      body();
      std::exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  [[nodiscard]] std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }
  static LeakReport ReportOn(const std::string& path) {
    absl::StatusOr<std::unique_ptr<TraceReader>> trace = TraceReader::Open(path);
    EXPECT_TRUE(trace.ok()) << trace.status();
    absl::StatusOr<LeakReport> report = ReportOnTrace(**trace, {});
    EXPECT_TRUE(report.ok()) << report.status();
    for (const TraceProblem& p : report->trace.problems) ADD_FAILURE() << "at " << p.offset << ": " << p.what;
    return *report;
  }
  const std::string folder_ = fmt::format("{}/gpuledger-process-{}", ::testing::TempDir(), getpid());
  const std::string path_ = folder_ + "/%p.trace";
};

TEST_F(RecorderProcessTest, ALateStartBeginsWithWhatIsLive) {
  ASSERT_EQ(InChild([&] {
              FakeUpstream upstream;
              CachingAllocator allocator(upstream, AllocatorOptions{});
              Buffer before = *allocator.Allocate(1_MiB, kStream);
              if (!Recorder::StartOfProcess({path_, 1_GiB}).ok()) _exit(1);
              Buffer after = *allocator.Allocate(2_MiB, kStream);
              { const Buffer gone = *allocator.Allocate(4_MiB, kStream); }
              kill(getpid(), SIGKILL);
            }),
            -SIGKILL);
  ASSERT_EQ(Files().size(), 1u);
  const LeakReport report = ReportOn(Files()[0]);
  EXPECT_EQ(report.in_use, 3_MiB);
  EXPECT_EQ(report.peak, 7_MiB);
  EXPECT_FALSE(report.undecided_why.empty());
}

TEST_F(RecorderProcessTest, OsExitLosesNothing) {
  ASSERT_EQ(InChild([&] {
              if (!Recorder::StartOfProcess({path_, 1_GiB}).ok()) _exit(1);
              FakeUpstream upstream;
              CachingAllocator allocator(upstream, AllocatorOptions{});
              std::vector<Buffer> all;
              for (int i = 0; i < 1000; ++i) all.push_back(*allocator.Allocate(512_B, kStream));
              _exit(7);
            }),
            7);
  EXPECT_EQ(ReportOn(Files().at(0)).in_use, 512_B * 1000u);
}

TEST_F(RecorderProcessTest, AForkedChildWritesAFileOfItsOwnThatBeginsWithWhatIsLive) {
  if (!kThreadsAfterFork) GTEST_SKIP() << "ThreadSanitizer has no threads in forked children";
  ASSERT_EQ(InChild([&] {
              if (!Recorder::StartOfProcess({path_, 1_GiB}).ok()) _exit(1);
              FakeOptions options;
              FakeUpstream upstream(options);
              CachingAllocator allocator(upstream, AllocatorOptions{});
              Buffer before = *allocator.Allocate(1_MiB, kStream);
              std::atomic<bool> stop{false};
              std::thread busy([&] {  // a fork in the midst of another thread's entries
                while (!stop) { const Buffer b = *allocator.Allocate(512_B, kStream); }
              });
              for (int i = 0; i < 3; ++i) {
                const int code = InChild([&] {
                  Buffer in_child = *allocator.Allocate(2_MiB, kStream);
                  usleep(500'000);  // its snapshot is taken by a thread
                  Buffer second = *allocator.Allocate(8_MiB, kStream);
                  _exit(0);
                });
                if (code != 0) _exit(2);
              }
              stop = true;
              busy.join();
              Buffer after = *allocator.Allocate(4_MiB, kStream);
              _exit(0);
            }),
            0);
  const std::vector<std::string> files = Files();
  ASSERT_EQ(files.size(), 4u);
  std::multimap<uint64_t, Bytes> in_use;
  for (const std::string& file : files) in_use.emplace(ReportOn(file).in_use.count() >> 20, Bytes());
  EXPECT_EQ(in_use.count(5), 1u);   // the parent: 1 + 4
  EXPECT_EQ(in_use.count(11), 3u);  // each child: 1 + 2 + 8, and maybe a small block that was in use at the fork
}

// Its snapshot is taken by a thread of its own, which may come too late: then nobody may think that nothing was live.
TEST_F(RecorderProcessTest, AChildThatEndsAtOnceHasItsSnapshotOrSaysThatItHasNone) {
  if (!kThreadsAfterFork) GTEST_SKIP() << "ThreadSanitizer has no threads in forked children";
  ASSERT_EQ(InChild([&] {
              if (!Recorder::StartOfProcess({path_, 1_GiB}).ok()) _exit(1);
              FakeUpstream upstream;
              CachingAllocator allocator(upstream, AllocatorOptions{});
              const Buffer before = *allocator.Allocate(1_MiB, kStream);
              std::atomic<bool> stop{false};
              std::thread busy([&] {  // threads that come and go while the process forks
                while (!stop) std::thread([&] { const Buffer b = *allocator.Allocate(512_B, kStream); }).join();
              });
              for (int i = 0; i < 30; ++i) {
                const int code = InChild([&] {
                  const Buffer in_child = *allocator.Allocate(2_MiB, kStream);
                  usleep(static_cast<useconds_t>(i * 20));
                  _exit(0);
                });
                if (code != 0) _exit(2);
              }
              stop = true;
              busy.join();
              _exit(0);
            }),
            0);
  ASSERT_EQ(Files().size(), 31u);
  for (const std::string& file : Files()) {
    absl::StatusOr<std::unique_ptr<TraceReader>> trace = TraceReader::Open(file);
    ASSERT_TRUE(trace.ok()) << trace.status();
    const absl::StatusOr<LeakReport> report = ReportOnTrace(**trace, {});
    ASSERT_TRUE(report.ok()) << report.status();
    if (report->trace.problems.empty()) {
      EXPECT_GE(report->in_use, 1_MiB);
    } else {
      EXPECT_NE(report->trace.problems[0].what.find("was live when the trace began"), std::string::npos) << report->trace.problems[0].what;
      EXPECT_FALSE(report->undecided_why.empty());
    }
  }
}

TEST_F(RecorderProcessTest, AChildThatHasGoneElsewhereWritesBesideItsParent) {
  if (!kThreadsAfterFork) GTEST_SKIP() << "ThreadSanitizer has no threads in forked children";
  ASSERT_EQ(InChild([&] {
              std::filesystem::current_path(folder_);
              if (!Recorder::StartOfProcess({"here.trace", 1_GiB}).ok()) _exit(1);
              FakeUpstream upstream;
              CachingAllocator allocator(upstream, AllocatorOptions{});
              _exit(InChild([&] {
                std::filesystem::current_path("/");
                const Buffer in_child = *allocator.Allocate(2_MiB, kStream);
              }));
            }),
            0);
  EXPECT_EQ(Files().size(), 2u);
}

TEST_F(RecorderProcessTest, AChildThatAllocatesNothingLeavesNoFile) {
  ASSERT_EQ(InChild([&] {
              if (!Recorder::StartOfProcess({path_, 1_GiB}).ok()) _exit(1);
              _exit(InChild([] {}));
            }),
            0);
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(RecorderProcessTest, AtItsLimitTheFileDropsWhatIsOldAndVerdictsStayRight) {
  constexpr Bytes kLimit = 2_MiB;
  ASSERT_EQ(InChild([&] {
              if (!Recorder::StartOfProcess({path_, kLimit}).ok()) _exit(1);
              FakeUpstream upstream;
              CachingAllocator allocator(upstream, AllocatorOptions{});
              std::vector<Buffer> kept;
              {
                const OwnerScope scope(Payer{InternOwner("long/ago"), Role::kScratch});
                const Buffer once = *allocator.Allocate(64_MiB, kStream);  // the peak
              }
              const Buffer held = *allocator.Allocate(3_MiB, kStream);
              if (!Settle::NoteFact(held.ptr().address(), FactKind::kHolder, 0, "global 'held'").ok()) _exit(1);
              const auto work = [&](uint64_t seed) {
                std::mt19937_64 random(seed);
                std::map<uint64_t, Buffer> live;
                for (int i = 0; i < 100'000; ++i) {
                  const uint64_t key = random() % 64;
                  if (random() % 2 == 0) live.erase(key); else live.insert_or_assign(key, *allocator.Allocate(Bytes(1 + random() % 30'000), kStream));
                }
              };
              for (int i = 0; i < kRounds; ++i) {
                kept.push_back(*allocator.Allocate(1_MiB, kStream));
                std::thread other(work, i);
                work(100 + static_cast<uint64_t>(i));
                other.join();
              }
              _exit(static_cast<int>(allocator.ledger().usage().in_use.count() >> 20));
            }),
            kRounds + 3);
  const std::string file = Files().at(0);
  struct stat found{};
  ASSERT_EQ(stat(file.c_str(), &found), 0);
  EXPECT_LE(Bytes(static_cast<uint64_t>(found.st_blocks) * 512), kLimit * 2u);
  const LeakReport report = ReportOn(file);
  EXPECT_EQ(report.in_use, 1_MiB * static_cast<uint64_t>(kRounds + 3));
  EXPECT_GT(report.trace.dropped_bytes, 0u);
  EXPECT_EQ(report.peak, 64_MiB);
  ASSERT_EQ(report.at_peak.size(), 1u);
  EXPECT_EQ(report.at_peak[0].owner, "long/ago");
  EXPECT_EQ(report.at_peak[0].bytes, 64_MiB);
  // What is known of a block that lives is not dropped either.
  const std::unique_ptr<TraceReader> trace = TraceReader::Open(file).value();
  int holders = 0;
  for (TraceEntry entry; trace->Next(&entry);) holders += entry.kind == EntryKind::kFact && entry.text == "global 'held'" ? 1 : 0;
  EXPECT_EQ(holders, 1);
}

}  // namespace
}  // namespace gpuledger
