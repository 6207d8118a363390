// The recorder and the reader together: what threads wrote comes back, whatever ended the process.
#include "gpuledger/recorder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include <fmt/format.h>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/trace_reader.h"

namespace gpuledger {
namespace {

std::string FreshPath(std::string_view name) {
  static int number = 0;
  return fmt::format("{}/gpuledger-{}-{}-{}.trace", ::testing::TempDir(), name, getpid(), number++);
}

class RecorderTest : public ::testing::Test {
 protected:
  ~RecorderTest() override { unlink(path_.c_str()); }
  std::unique_ptr<Recorder> Started(Bytes limit = 1_GiB) {
    absl::StatusOr<std::unique_ptr<Recorder>> recorder = Recorder::Start({path_, limit});
    EXPECT_TRUE(recorder.ok()) << recorder.status();
    return recorder.ok() ? *std::move(recorder) : nullptr;
  }
  std::vector<TraceEntry> Entries() {
    absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(path_);
    EXPECT_TRUE(reader.ok()) << reader.status();
    std::vector<TraceEntry> entries;
    TraceEntry entry;
    while (reader.ok() && (*reader)->Next(&entry)) entries.push_back(entry);
    if (reader.ok()) {
      for (const TraceProblem& p : (*reader)->info().problems) ADD_FAILURE() << "at " << p.offset << ": " << p.what;
      reader_ = *std::move(reader);
    }
    return entries;
  }
  const std::string path_ = FreshPath("recorder");
  std::unique_ptr<TraceReader> reader_;
};

// Random records as a ledger of one thread would write them.
class RecordSource {
 public:
  explicit RecordSource(uint64_t seed) : random_(seed) {}
  Record Next(uint64_t sequence) {
    Record r;
    r.kind = static_cast<RecordKind>(random_() % 9);
    r.sequence = sequence + (random_() % 50 == 0 ? random_() % 1000 : 0);
    time_ += random_() % 3000;
    r.time = TimePoint(time_);
    r.allocation = AllocationId(random_() % 4 == 0 ? random_() : time_);
    r.thread = ThisThread();
    r.device = DeviceId(static_cast<int>(random_() % 3) - 1);
    r.ledger = LedgerId(static_cast<uint32_t>(random_() % 2));
    if (r.kind == RecordKind::kFreeRequested || r.kind == RecordKind::kFreeCompleted) return r;
    r.requested = Bytes(random_() % 8 == 0 ? random_() : random_() % 100000);
    r.charged = random_() % 2 == 0 || r.requested.is_zero() || r.requested.count() > uint64_t{1} << 62 ? Bytes(random_())
                                                                            : SizeClass::For(r.requested).charged();
    r.address = random_() % 2 == 0 ? random_() : random_() / 512 * 512;
    r.stream = reinterpret_cast<CUstream_st*>(random_() % 3 * 16);
    r.owner = OwnerId(static_cast<uint32_t>(random_() % 2));
    r.role = static_cast<Role>(random_() % kRoleCount);
    r.scope = ScopeId(static_cast<uint32_t>(random_() % 2));
    return r;
  }

 private:
  std::mt19937_64 random_;
  uint64_t time_ = 1000;
};

bool Same(const Record& a, const Record& b) {
  return a.kind == b.kind && a.sequence == b.sequence && a.time == b.time && a.allocation == b.allocation && a.thread == b.thread &&
         a.device == b.device && a.ledger == b.ledger && a.requested == b.requested && a.charged == b.charged &&
         a.address == b.address && a.stream == b.stream && a.owner == b.owner && a.role == b.role && a.scope == b.scope && a.site == b.site;
}

TEST_F(RecorderTest, GivesBackEveryRecordInOrder) {
  InternOwner("one");
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  RecordSource source(seed);
  std::vector<Record> written;
  {
    const std::unique_ptr<Recorder> recorder = Started();
    for (uint64_t i = 1; i <= 200'000; ++i) recorder->Write(written.emplace_back(source.Next(i)));
  }
  std::vector<TraceEntry> entries = Entries();
  ASSERT_EQ(entries.size(), written.size() + 1);
  for (size_t i = 0; i < written.size(); ++i) ASSERT_TRUE(Same(entries[i].record, written[i])) << "record " << i;
  EXPECT_EQ(entries.back().kind, EntryKind::kProgramEnded);
  EXPECT_EQ(reader_->owner_name(OwnerId(1)), OwnerName(OwnerId(1)));
}

TEST_F(RecorderTest, MergesThreadsByTimeAndKeepsTheOrderOfEach) {
  constexpr int kThreads = 4;
  constexpr uint64_t kEach = 50'000;
  {
    const std::unique_ptr<Recorder> recorder = Started();
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        Record r;
        r.thread = ThisThread();
        r.kind = RecordKind::kAllocate;
        r.requested = Bytes(512u), r.charged = Bytes(512u);
        for (uint64_t i = 1; i <= kEach; ++i) {
          r.sequence = i;
          r.time = TimePoint(i * 10 + static_cast<uint64_t>(t));
          r.allocation = AllocationId(i * kThreads + static_cast<uint64_t>(t));
          recorder->Write(r);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::map<uint32_t, uint64_t> last;
  uint64_t time = 0, count = 0;
  for (const TraceEntry& entry : Entries()) {
    if (entry.kind != EntryKind::kRecord) continue;
    EXPECT_GE(entry.record.time.value(), time);
    time = entry.record.time.value();
    uint64_t& before = last[entry.record.thread.value()];
    EXPECT_EQ(entry.record.sequence, before + 1);
    before += 1, count += 1;
  }
  EXPECT_EQ(count, kThreads * kEach);
}

TEST_F(RecorderTest, KeepsMarksFactsAndTextsOfAnyLength) {
  {
    const std::unique_ptr<Recorder> recorder = Started();
    recorder->Mark("step 3");
    recorder->Mark(std::string(100'000, 'x'));
    recorder->Fact(DeviceId(0), AllocationId(7), FactKind::kHolder, 5, "local 'value' of convert()");
    recorder->Settle(SettleStep::kCollected);
  }
  const std::vector<TraceEntry> entries = Entries();
  ASSERT_EQ(entries.size(), 5u);
  EXPECT_EQ(entries[0].kind, EntryKind::kMark);
  EXPECT_EQ(entries[2].kind, EntryKind::kFact);
  EXPECT_EQ(entries[2].record.allocation, AllocationId(7));
  EXPECT_EQ(entries[2].value, 5u);
  EXPECT_EQ(entries[3].settle, SettleStep::kCollected);
}

TEST_F(RecorderTest, MakesTheFileForItsOwnerAloneAndNeverOverAnother) {
  const std::unique_ptr<Recorder> recorder = Started();
  struct stat found{};
  ASSERT_EQ(stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777u, 0600u);
  const absl::StatusOr<std::unique_ptr<Recorder>> second = Recorder::Start({path_, 1_GiB});
  ASSERT_TRUE(second.ok());  // beside it
  EXPECT_EQ((*second)->path(), path_ + fmt::format(".{}", getpid()));
  EXPECT_EQ(Recorder::Start({path_, 1_GiB}).status().code(), absl::StatusCode::kAlreadyExists);
  unlink((*second)->path().c_str());
}

TEST_F(RecorderTest, SmallTracesTakeLittleOfTheDisk) {
  { Started()->Mark("all"); }
  struct stat found{};
  ASSERT_EQ(stat(path_.c_str(), &found), 0);
  EXPECT_LE(found.st_blocks * 512, 64 << 10);
}

// What a killed writer told its parent through shared memory.
struct Progress {
  std::atomic<uint64_t> written, ten_ms_ago;
};

TEST_F(RecorderTest, AKilledProcessLeavesAllThatItWrote) {
  auto* const progress = static_cast<Progress*>(
      mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kKills = 50;  // they are slow to start
#else
  constexpr int kKills = 1000;
#endif
  for (int kill_number = 0; kill_number < kKills; ++kill_number) {
    progress->written = 0;
    const pid_t child = fork();
    if (child == 0) {
      const auto recorder = Recorder::Start({path_, 1_GiB});
      if (!recorder.ok()) _exit(1);
      Record r;
      r.thread = ThisThread();
      r.kind = RecordKind::kAllocate;
      for (uint64_t i = 1;; ++i) {
        r.sequence = i;
        r.time = TimePoint(i);
        r.allocation = AllocationId(i);
        r.requested = Bytes(i % 5000 + 1), r.charged = SizeClass::For(r.requested).charged();
        (*recorder)->Write(r);
        progress->written.store(i, std::memory_order_release);
      }
    }
    while (progress->written.load() == 0 && waitpid(child, nullptr, WNOHANG) == 0) usleep(50);
    usleep(static_cast<useconds_t>(random() % 4000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(path_);
    ASSERT_TRUE(reader.ok()) << reader.status();
    uint64_t read = 0;
    for (TraceEntry entry; (*reader)->Next(&entry);) ASSERT_EQ(entry.record.sequence, ++read) << "kill " << kill_number;
    // Nothing is written late: not the last 10 ms, but the last entry alone may be missing.
    ASSERT_GE(read, progress->written.load()) << "kill " << kill_number;
    unlink(path_.c_str());
  }
  munmap(progress, sizeof(Progress));
}

TEST_F(RecorderTest, AFullDiskStopsNobodyAndCountsWhatIsLost) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit{1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    const auto recorder = Recorder::Start({path_, 1_GiB});
    if (!recorder.ok()) _exit(1);
    std::mt19937_64 random(1);
    Record r;
    r.thread = ThisThread();
    for (uint64_t i = 1; i <= 500'000; ++i) {
      r.sequence = i, r.time = TimePoint(i), r.allocation = AllocationId(random()), r.requested = r.charged = Bytes(random());
      (*recorder)->Write(r);
    }
    _exit((*recorder)->lost() > 0 ? 0 : 2);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  uint64_t read = 0;
  for (TraceEntry entry; (*reader)->Next(&entry);) ++read;
  EXPECT_GT(read, 10'000u);
  EXPECT_GT((*reader)->info().lost, 0u);
}

}  // namespace
}  // namespace gpuledger
