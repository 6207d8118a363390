// Traces that are damaged, cut off, at work, or none: what can be read is read, and what cannot is told by its offset.
#include "gpuledger/trace_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

#include <fmt/format.h>

#include "gpuledger/leak_report.h"
#include "gpuledger/recorder.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;

// What FORMAT.md says of the file's header.
constexpr size_t kVersionAt = 8, kHeaderBytes = 4096;

std::string BytesOf(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

class TraceReaderTest : public ::testing::Test {
 protected:
  ~TraceReaderTest() override {
    unlink(path_.c_str());
    unlink(damaged_.c_str());
  }
  std::unique_ptr<Recorder> Started() { return Recorder::Start({path_, 1_GiB}).value(); }
  static void Write(Recorder& recorder, uint64_t from, uint64_t to) {
    std::mt19937_64 random(from);
    for (uint64_t i = from; i < to; ++i) {
      Record r;
      r.thread = ThisThread();
      r.sequence = i + 1;
      r.time = TimePoint(1000 + i * 100);
      r.allocation = AllocationId(i);
      r.requested = Bytes(random() % 100'000 + 1), r.charged = SizeClass::For(r.requested).charged();
      r.address = random() % 100'000 * 512;
      recorder.Write(r);
    }
  }
  // The allocations that are read, in order; their number in the file is their id.
  std::vector<uint64_t> IdsIn(const std::string& path, std::vector<TraceProblem>* problems = nullptr) {
    std::vector<uint64_t> ids;
    absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(path);
    EXPECT_TRUE(reader.ok()) << reader.status();
    if (!reader.ok()) return ids;
    TraceEntry entry;
    while ((*reader)->Next(&entry)) {
      if (entry.kind == EntryKind::kRecord) ids.push_back(entry.record.allocation.value());
    }
    if (problems != nullptr) *problems = (*reader)->info().problems;
    return ids;
  }
  // Changes one byte of the damaged file.
  void Poke(size_t at, char byte) const {
    const int fd = open(damaged_.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(pwrite(fd, &byte, 1, static_cast<off_t>(at)), 1);
    close(fd);
  }
  // The file's bytes, or others.
  const std::string& Damaged(const std::string& bytes) const {
    std::ofstream(damaged_, std::ios::binary) << bytes;
    return damaged_;
  }
  static std::string Fresh(std::string_view what) { return fmt::format("{}/gpuledger-{}-{}.trace", ::testing::TempDir(), what, getpid()); }

  const std::string path_ = Fresh("reader"), damaged_ = Fresh("damaged");
};

bool IsInOrder(const std::vector<uint64_t>& ids) { return std::is_sorted(ids.begin(), ids.end()) && std::adjacent_find(ids.begin(), ids.end()) == ids.end(); }

TEST_F(TraceReaderTest, SaysWhatIsNoTrace) {
  EXPECT_EQ(TraceReader::Open("/nowhere/a.trace").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(TraceReader::Open(::testing::TempDir()).status().message()), HasSubstr("is not a file"));
  for (const char* const text : {"", "op,id,size,stream,time_us\n"}) {
    const absl::Status status = TraceReader::Open(Damaged(text)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not a trace"));
  }
}

TEST_F(TraceReaderTest, RefusesTheFutureWithASentence) {
  { Started(); }
  std::string bytes = BytesOf(path_);
  bytes[kVersionAt] = 99;
  EXPECT_THAT(std::string(TraceReader::Open(Damaged(bytes)).status().message()), HasSubstr("version 99"));
}

TEST_F(TraceReaderTest, AFileCutOffAnywhereGivesWhatIsInItInOrder) {
  for (const bool killed : {false, true}) {
    const std::unique_ptr<Recorder> recorder = Started();
    Write(*recorder, 0, 100);
    if (!killed) recorder->End();
    const std::string bytes = BytesOf(path_);
    ASSERT_EQ(IdsIn(path_).size(), 100u);
    size_t most = 0;
    Damaged(bytes);
    for (size_t length = bytes.size(); length-- > 0;) {
      // Each length where there is something, some where there are zeros.
      if (length % 997 != 0 && bytes.find_first_not_of('\0', length) > length + 8) continue;
      ASSERT_EQ(truncate(damaged_.c_str(), static_cast<off_t>(length)), 0);
      if (length < kHeaderBytes && !TraceReader::Open(damaged_).ok()) continue;
      const std::vector<uint64_t> ids = IdsIn(damaged_);
      ASSERT_TRUE(IsInOrder(ids)) << "length " << length;
      ASSERT_LE(ids.size(), 100u);
      most = std::max(most, ids.size());
    }
    EXPECT_EQ(most == 0, !killed) << "a block is whole or not; a ring has what is in it";
    unlink(path_.c_str());
  }
}

TEST_F(TraceReaderTest, ABitFlippedInABlockLosesThatBlockAloneAndSaysWhere) {
  constexpr uint64_t kEntries = 20'000;
  {
    const std::unique_ptr<Recorder> recorder = Started();
    Write(*recorder, 0, kEntries);
  }
  const std::string bytes = BytesOf(path_);
  Damaged(bytes);
  ASSERT_EQ(IdsIn(path_).size(), kEntries);
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
  size_t flips = 0;
  while (flips < 400) {
    const size_t at = kHeaderBytes + random() % (bytes.size() - kHeaderBytes);
    if (bytes[at] == 0) continue;
    ++flips;
    Poke(at, static_cast<char>(bytes[at] ^ (1 << random() % 8)));
    std::vector<TraceProblem> problems;
    const std::vector<uint64_t> ids = IdsIn(damaged_, &problems);
    Poke(at, bytes[at]);
    ASSERT_TRUE(IsInOrder(ids));
    if (problems.empty()) {  // zstd has a bit that means nothing
      ASSERT_EQ(ids.size(), kEntries) << "byte " << at;
      continue;
    }
    ASSERT_LE(problems.front().offset, at);
    ASSERT_LE(ids.size(), kEntries);  // all of them if the block has the program's end alone
    ASSERT_GT(ids.size(), kEntries / 2) << "byte " << at;
  }
}

TEST_F(TraceReaderTest, ABitFlippedAnywhereInHeaderOrRingIsSurvived) {
  const std::unique_ptr<Recorder> recorder = Started();
  recorder->Mark("here");
  recorder->Fact(DeviceId(0), AllocationId(1), FactKind::kHolder, 0, "somebody");
  Write(*recorder, 0, 40);
  const std::string bytes = BytesOf(path_);
  Damaged(bytes);
  ReportOptions unsymbolised;
  unsymbolised.symbolise = false;
  for (size_t at = 0; at < bytes.size(); ++at) {
    if (bytes[at] == 0 && at >= 96) continue;
    for (int bit = static_cast<int>(at % 2); bit < 8; bit += 3) {
      Poke(at, static_cast<char>(bytes[at] ^ (1 << bit)));
      if (const auto reader = TraceReader::Open(damaged_); reader.ok()) {
        const absl::StatusOr<LeakReport> report = ReportOnTrace(**reader, unsymbolised);
        ASSERT_TRUE(report.ok()) << report.status() << " bit " << bit << " of byte " << at;
      }
    }
    Poke(at, bytes[at]);
  }
}

TEST_F(TraceReaderTest, AnAddressThatRunsOverIsSurvived) {  // found by fuzz_trace, under UBSan
  const std::unique_ptr<Recorder> recorder = Started();
  Write(*recorder, 0, 40);
  std::string bytes = BytesOf(path_);
  // The first entry of the first ring: an allocation whose address differs by the most that can be written.
  constexpr size_t kFirstEntry = kHeaderBytes + 4096 + 64;
  const std::string entry = std::string(3, '\0') + "\1" + std::string(9, '\xff') + "\1";
  bytes.replace(kFirstEntry, entry.size(), entry);
  const std::unique_ptr<TraceReader> reader = TraceReader::Open(Damaged(bytes)).value();
  EXPECT_TRUE(ReportOnTrace(*reader, {}).ok());
}

TEST_F(TraceReaderTest, OffsetsOfAnySizeInTheHeaderAreSurvived) {  // found by fuzz_trace, under UBSan
  {
    const std::unique_ptr<Recorder> recorder = Started();
    Write(*recorder, 0, 40);
  }
  const std::string bytes = BytesOf(path_);
  for (const uint64_t offset : {UINT64_MAX, UINT64_MAX - 63, uint64_t{1} << 63, uint64_t{bytes.size()}}) {
    for (size_t at = 40; at < 64; at += 8) {  // first offset, snapshot, last ring
      std::string changed = bytes;
      std::memcpy(changed.data() + at, &offset, sizeof offset);
      std::vector<TraceProblem> problems;
      const std::vector<uint64_t> ids = IdsIn(Damaged(changed), &problems);
      EXPECT_TRUE(ids.size() == 40 || at == 40) << at;
      EXPECT_FALSE(problems.empty() && offset > bytes.size());
    }
  }
}

TEST_F(TraceReaderTest, BehindAHoleReadingGoesOn) {
  constexpr uint64_t kEntries = 50'000;
  {
    const std::unique_ptr<Recorder> recorder = Started();
    Write(*recorder, 0, kEntries);
  }
  std::string bytes = BytesOf(path_);
  const size_t middle = (bytes.size() + kHeaderBytes) / 2;
  std::memset(bytes.data() + middle, 0, 1000);
  std::vector<TraceProblem> problems;
  const std::vector<uint64_t> ids = IdsIn(Damaged(bytes), &problems);
  ASSERT_TRUE(IsInOrder(ids));
  EXPECT_FALSE(problems.empty());
  EXPECT_EQ(ids.front(), 0u);
  EXPECT_EQ(ids.back(), kEntries - 1);
  EXPECT_LT(ids.size(), kEntries);
  EXPECT_GT(ids.size(), kEntries / 2);
}

TEST_F(TraceReaderTest, ATraceThatIsBeingWrittenHasAllThatWasWritten) {
  const std::unique_ptr<Recorder> recorder = Started();
  uint64_t written = 0;
  for (const uint64_t more : {1u, 10u, 5000u, 20'000u, 3u, 40'000u}) {
    Write(*recorder, written, written + more);
    written += more;
    std::vector<TraceProblem> problems;
    EXPECT_EQ(IdsIn(path_, &problems).size(), written);
    for (const TraceProblem& p : problems) ADD_FAILURE() << "at " << p.offset << ": " << p.what;
  }
}

TEST_F(TraceReaderTest, RewoundItTellsTheSameOnceMore) {
  const std::unique_ptr<Recorder> recorder = Started();
  Write(*recorder, 0, 10'000);
  const std::unique_ptr<TraceReader> reader = TraceReader::Open(path_).value();
  TraceEntry entry;
  uint64_t first = 0, second = 0;
  while (reader->Next(&entry)) ++first;
  Write(*recorder, 10'000, 20'000);  // after it was opened
  reader->Rewind();
  while (reader->Next(&entry)) ++second;
  EXPECT_EQ(first, 10'000u);
  EXPECT_EQ(second, first);
}

}  // namespace
}  // namespace gpuledger
