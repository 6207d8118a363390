// WriteCheckpoint when something goes wrong: the whole checkpoint appears, or nothing does.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <random>

#include "test_writer.h"

namespace gpuledger {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class CheckpointSafetyTest : public CheckpointWriterTest {};

TEST_F(CheckpointSafetyTest, NeverReplacesADirectory) {
  fs::create_directory(out_);
  for (const std::string& name : {out_, out_ + "/", out_ + "/.", directory_ / "model/../out"}) {
    const absl::Status status = WriteCheckpoint(Directory(source_), name, Tensors()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
  EXPECT_TRUE(fs::is_empty(out_));
  ExpectOnly({"model", "out"});
}

TEST_F(CheckpointSafetyTest, ADirectoryThatAppearsMeanwhileIsNotReplaced) {
  const TensorReader read = [&](Bytes, std::span<std::byte>) {
    fs::create_directory(out_);
    return absl::OkStatus();
  };
  EXPECT_EQ(Write({KeptTensor{"a", Dtype::kU8, {1}, read}}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs::is_empty(out_));
  ExpectOnly({"model", "out"});
}

TEST_F(CheckpointSafetyTest, AFailedReaderLeavesNothingAndItsErrorIsReturned) {
  std::vector<CheckpointTensor> tensors = Tensors();
  std::get<KeptTensor>(tensors[2]).read = [](Bytes, std::span<std::byte>) {
    return absl::DataLossError("the reader's own");
  };
  EXPECT_EQ(Write(tensors).status(), absl::DataLossError("the reader's own"));
  ExpectOnly({"model"});
}

TEST_F(CheckpointSafetyTest, AKilledWriterLeavesNothingThatLooksLikeACheckpoint) {
  WriteFile(source_ + "/tokenizer.json", "{}");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::vector<CheckpointTensor> tensors = Tensors();
    std::get<KeptTensor>(tensors[2]).read = [](Bytes, std::span<std::byte>) -> absl::Status {
      ::raise(SIGKILL);
      return absl::OkStatus();
    };
    (void)Write(tensors);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(out_));
  for (const auto& entry : fs::recursive_directory_iterator(directory_.path())) {
    if (entry.path().parent_path() == source_) continue;
    EXPECT_NE(entry.path().filename(), "config.json");
    EXPECT_NE(entry.path().filename(), "model.safetensors");
  }
}

TEST_F(CheckpointSafetyTest, StopsWhenItIsToldToAndLeavesNothing) {
  std::vector<std::pair<Bytes, Bytes>> calls;
  const auto stop_at = [&](size_t call) {
    return [&calls, call](Bytes done, Bytes total) {
      calls.emplace_back(done, total);
      return calls.size() < call;
    };
  };
  ASSERT_TRUE(WriteCheckpoint(Directory(source_), out_, Tensors(), stop_at(1000)).ok());
  EXPECT_EQ(calls.back().first, calls.back().second);
  const size_t all = calls.size();
  for (size_t call = 1; call <= all; ++call) {
    calls.clear();
    const absl::Status status =
        WriteCheckpoint(Directory(source_), directory_ / "other", Tensors(), stop_at(call)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(directory_ / "other"), HasSubstr("cancelled after")));
  }
  ExpectOnly({"model", "out"});
}

TEST_F(CheckpointSafetyTest, ADiskThatIsTooSmallIsForeseen) {
  const absl::Status status = Write({KeptTensor{"huge",
                                                Dtype::kF64,
                                                {uint64_t{1} << 58},
                                                [](Bytes, std::span<std::byte>) -> absl::Status {
                                                  ADD_FAILURE() << "nothing is read";
                                                  return absl::OkStatus();
                                                }}})
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(out_), HasSubstr("needs 2305843009213693952 bytes")));
  ExpectOnly({"model"});
}

TEST_F(CheckpointSafetyTest, ADiskThatFillsUpLeavesNothing) {
  // A file size limit stands for the full disk; it needs no rights. SIGXFSZ would kill the process.
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const rlimit limit{4096, old_limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto zeros = [](Bytes, std::span<std::byte>) { return absl::OkStatus(); };
  const absl::Status status = Write({KeptTensor{"big", Dtype::kU8, {1u << 20}, zeros}}).status();
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("model.safetensors"), HasSubstr("bytes after 4096")));
  ExpectOnly({"model"});
}

TEST_F(CheckpointSafetyTest, AParentThatIsNotThereIsNamed) {
  const absl::Status status = WriteCheckpoint(Directory(source_), directory_ / "no/out", Tensors()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(directory_ / "no"), HasSubstr("cannot be created here")));
}

TEST_F(CheckpointSafetyTest, AWriterKilledAtAnyMomentLeavesTheWholeCheckpointOrNone) {
  WriteFile(source_ + "/tokenizer.json", std::string(100000, ' '));
  const uint32_t seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  int killed = 0;
  int complete = 0;
  for (int round = 0; round < 40; ++round) {
    out_ = directory_ / ("out" + std::to_string(round));
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::vector<CheckpointTensor> tensors = Tensors();
      tensors.push_back(
          KeptTensor{"big", Dtype::kU8, {3u << 20}, [](Bytes, std::span<std::byte>) { return absl::OkStatus(); }});
      CheckpointOptions options;
      options.shard_size = Bytes(1u << 20);
      ::_exit(WriteCheckpoint(Directory(source_), out_, tensors, {}, options).ok() ? 0 : 1);
    }
    ::usleep(static_cast<useconds_t>(random() % 30000));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
      ++killed;
    } else {
      EXPECT_EQ(WEXITSTATUS(status), 0);
    }
    if (!fs::exists(out_)) continue;
    ++complete;
    const auto model = OpenModel(out_);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->tensors().size(), 7u);
    EXPECT_EQ(fs::file_size(out_ + "/tokenizer.json"), 100000u);
  }
  EXPECT_GT(killed, 0);
  for (const std::string& name : directory_.Names()) {
    EXPECT_TRUE(name[0] == '.' || name == "model" || fs::exists(directory_ / (name + "/config.json"))) << name;
  }
  RecordProperty("complete", complete);
}

}  // namespace
}  // namespace gpuledger
