// Handles as bytes, and descriptors of other processes: without CUDA.
#include "ipc_handles.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gpuledger::cuda {
namespace {

using ::testing::HasSubstr;

SharedHandles Some() {
  return {.process = 4711, .started = 123456789, .handles = {{7, 1, 2_MiB}, {1000, 5, 64_MiB}, {9, uint64_t{1} << 40, 2_GiB}}};
}

// The check at the end, made right again for bytes that were changed on purpose.
std::string Checked(std::string bytes) {
  bytes.resize(bytes.size() - 8);
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(hash >> 8 * i));
  return bytes;
}

TEST(IpcHandles, AreReadBackAsTheyWereWritten) {
  const std::string bytes = Encode(Some());
  EXPECT_EQ(bytes.size(), 32u + 3 * 20);
  const SharedHandles read = Decode(bytes).value();
  EXPECT_EQ(Encode(read), bytes);
  EXPECT_EQ(read.process, 4711);
  EXPECT_EQ(read.handles[1].descriptor, 1000);
  EXPECT_EQ(read.size(), 2_MiB + 64_MiB + 2_GiB);
  EXPECT_EQ(Checked(bytes), bytes);
}

TEST(IpcHandles, EveryChangedBitIsNoticed) {
  const std::string bytes = Encode(Some());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string changed = bytes;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    EXPECT_TRUE(absl::IsInvalidArgument(Decode(changed).status())) << "bit " << bit;
  }
}

TEST(IpcHandles, EveryCutAndEveryAdditionIsNoticed) {
  const std::string bytes = Encode(Some());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_TRUE(absl::IsInvalidArgument(Decode(bytes.substr(0, size)).status())) << size;
    if (size >= 8) {
      EXPECT_TRUE(absl::IsInvalidArgument(Decode(Checked(bytes.substr(0, size))).status())) << size;
    }
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Decode(bytes + "x").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Decode(Checked(bytes + std::string(20, '\0'))).status()));
}

TEST(IpcHandles, WhatIsSaidNamesTheWayOut) {
  EXPECT_THAT(Decode("hello").status().ToString(), HasSubstr("they begin otherwise; pass them on unchanged"));
  std::string other = Encode(Some());
  other[7] = '2';
  EXPECT_THAT(Decode(Checked(other)).status().ToString(), HasSubstr("they are of another version"));
}

TEST(IpcHandles, ImpossibleValuesAreRefusedEvenWithTheRightCheck) {
  const auto refused = [](const SharedHandles& shared) { return absl::IsInvalidArgument(Decode(Encode(shared)).status()); };
  EXPECT_FALSE(refused(Some()));
  SharedHandles none = Some();
  none.handles.clear();
  EXPECT_TRUE(refused(none));
  for (const int process : {0, -1}) {
    SharedHandles nobody = Some();
    nobody.process = process;
    EXPECT_TRUE(refused(nobody));
  }
  for (const SharedHandle& bad : {SharedHandle{-1, 1, 2_MiB}, SharedHandle{3, 1, 0_B}, SharedHandle{3, 1, 1_MiB},
                                  SharedHandle{3, 1, Bytes(uint64_t{1} << 58)}, SharedHandle{3, 1, Bytes::Max().RoundDownTo(2_MiB)}}) {
    SharedHandles shared = Some();
    shared.handles[2] = bad;
    EXPECT_TRUE(refused(shared)) << ToString(bad.size);
  }
  SharedHandles much = Some();
  for (SharedHandle& handle : much.handles) handle.size = Bytes(uint64_t{1} << 56);
  EXPECT_TRUE(refused(much));
}

TEST(IpcHandles, WhateverTheBytesAreTheyAreReadOrRefused) {
  std::mt19937 random(8);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = Encode(Some());
    for (uint32_t changes = random() % 6; changes > 0; --changes) bytes[8 + random() % (bytes.size() - 8)] = static_cast<char>(random());
    const absl::StatusOr<SharedHandles> read = Decode(Checked(bytes));
    if (read.ok()) {
      EXPECT_EQ(Encode(*read), Checked(bytes));
      EXPECT_LE(read->size(), Bytes(uint64_t{1} << 57));
    }
  }
}

TEST(IpcProcess, TheStartOfAProcessStaysWhatItIs) {
  const uint64_t started = StartOf(getpid());
  const std::string memory(64 << 20, 'x');  // what else the kernel says of it changes
  EXPECT_EQ(StartOf(getpid()), started);
  EXPECT_EQ(StartOf(0), 0u);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  EXPECT_GE(StartOf(child), started);
  EXPECT_LE(StartOf(child), started + 100 * 3600 * 24);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

// Skips where the kernel, or who watches over its calls, has no such thing.
class IpcDescriptorsOf : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::Status tried = TakeDescriptors({.process = getpid(), .handles = {{0, 1, 2_MiB}}}).status();
    if (absl::IsUnimplemented(tried) || absl::IsPermissionDenied(tried)) GTEST_SKIP() << tried;
  }
};

TEST_F(IpcDescriptorsOf, ThisProcessAreTakenToo) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const SharedHandles shared = {.process = getpid(), .started = StartOf(getpid()), .handles = {{ends[1], 1, 2_MiB}}};
  ASSERT_NE(shared.started, 0u);
  {
    const std::vector<Descriptor> taken = TakeDescriptors(shared).value();
    ASSERT_EQ(write(taken[0].get(), "x", 1), 1);
  }
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);
  close(ends[0]);
  close(ends[1]);
  const absl::Status gone = TakeDescriptors(shared).status();
  EXPECT_TRUE(absl::IsNotFound(gone));
  EXPECT_THAT(gone.ToString(), HasSubstr("has given the memory back: it has to keep it until it was imported"));
}

TEST_F(IpcDescriptorsOf, AProcessThatHasEndedAreNotFound) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  const absl::Status ended = TakeDescriptors({.process = child, .handles = {{1, 1, 2_MiB}}}).status();
  EXPECT_TRUE(absl::IsNotFound(ended));
  EXPECT_THAT(ended.ToString(), HasSubstr("the process has ended"));
  // Its number is another process's by now: this one's.
  const uint64_t started = StartOf(getpid());
  EXPECT_TRUE(absl::IsNotFound(TakeDescriptors({.process = getpid(), .started = started + 1, .handles = {{1, 1, 2_MiB}}}).status()));
}

TEST_F(IpcDescriptorsOf, AnotherUsersProcessAreRefusedWithTheWayOut) {
  if (getuid() != 0) GTEST_SKIP() << "needs the right to become another user";
  const int file = open("/dev/null", O_RDONLY);
  const SharedHandles shared = {.process = getpid(), .started = StartOf(getpid()), .handles = {{file, 1, 2_MiB}}};
  const pid_t child = fork();
  if (child == 0) {
    if (setuid(65534) != 0) _exit(2);
    const absl::Status refused = TakeDescriptors(shared).status();
    const bool right = absl::IsPermissionDenied(refused) && refused.ToString().find("ptrace_scope") != std::string::npos;
    if (!right) std::fprintf(stderr, "in the child: %s\n", refused.ToString().c_str());
    _exit(right ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  close(file);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace gpuledger::cuda
