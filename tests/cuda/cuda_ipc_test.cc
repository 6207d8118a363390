// Memory that another process maps: exported, imported, kept, given back; each driver call failing in turn.
#include "gpuledger/cuda_ipc.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/allocator.h"
#include "gpuledger/cuda_stream.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

using ::testing::HasSubstr;

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

// tests/cuda/import_memory.cc, beside this program.
class OtherProcess {
 public:
  OtherProcess(const ExportedMemory& exported, Bytes offset) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) std::abort();
    const std::string program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "import_memory";
    const std::string at = std::to_string((exported.offset + offset).count());
    child_ = fork();
    if (child_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      execl(program.c_str(), program.c_str(), "0", at.c_str(), nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = in[1];
    from_ = fdopen(out[0], "r");
    const auto size = static_cast<uint32_t>(exported.handles.size());
    EXPECT_EQ(write(to_, &size, sizeof(size)), ssize_t{sizeof(size)});
    EXPECT_EQ(write(to_, exported.handles.data(), size), ssize_t{size});
  }
  ~OtherProcess() {
    if (to_ >= 0) End();
    std::fclose(from_);
  }
  std::string Line() {
    char text[1000] = {};
    if (std::fgets(text, sizeof(text), from_) == nullptr) return "it has ended";
    text[std::strlen(text) - 1] = '\0';
    return text;
  }
  // Its last line, once it is told to end.
  std::string End() {
    close(std::exchange(to_, -1));
    std::string last = Line();
    waitpid(child_, nullptr, 0);
    return last;
  }

 private:
  pid_t child_;
  int to_;
  std::FILE* from_;
};

class CudaIpcTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    upstream_ = OpenCuda(0, {.exportable = true});
    if (upstream_ == nullptr) GTEST_SKIP() << "the device's memory cannot be exported";
    work_ = CudaStream::Create(DeviceId(0)).value();
    std::vector<HandleId> handles;
    const Range range = MapHandles(1, &handles);
    const absl::Status tried = ImportedMemory::Import(DeviceId(0), upstream().Export(range.base, 1_B).value().handles).status();
    GiveBack(range, handles);
    if (absl::IsUnimplemented(tried) || absl::IsPermissionDenied(tried)) GTEST_SKIP() << tried;
  }
  void Put(DevicePtr at, uint32_t word) {
    EXPECT_TRUE(work_->Fill(at, word, 1).ok());
    EXPECT_TRUE(work_->Wait().ok());
  }
  uint32_t Get(DevicePtr at) {
    uint32_t word = 0;
    EXPECT_TRUE(work_->Read(at, std::as_writable_bytes(std::span(&word, 1))).ok());
    EXPECT_TRUE(work_->Wait().ok());
    return word;
  }
  // `count` handles of one granule, mapped one behind the other.
  Range MapHandles(size_t count, std::vector<HandleId>* handles) {
    const Bytes granule = upstream().granularity();
    const Range range = upstream().Reserve(granule * count).value();
    for (size_t i = 0; i < count; ++i) {
      handles->push_back(upstream().CreateHandle(granule).value());
      EXPECT_TRUE(upstream().Map(range.base + granule * i, handles->back()).ok());
    }
    return range;
  }
  void GiveBack(Range range, const std::vector<HandleId>& handles) {
    for (size_t i = 0; i < handles.size(); ++i) {
      EXPECT_TRUE(upstream().Unmap(range.base + upstream().granularity() * i, handles[i]).ok());
      EXPECT_TRUE(upstream().ReleaseHandle(handles[i]).ok());
    }
    EXPECT_TRUE(upstream().Unreserve(range).ok());
  }

  std::unique_ptr<CudaStream> work_;
};

TEST_F(CudaIpcTest, ABlockIsReadAndWrittenByAnotherProcess) {
  CachingAllocator allocator(upstream(), {});
  const Buffer before = allocator.Allocate(3_MiB, stream()).value(), block = allocator.Allocate(5_MiB, stream()).value();
  Put(block.ptr() + 4_MiB, 4711);
  const ExportedMemory exported = upstream().Export(block.ptr(), block.size()).value();
  OtherProcess other(exported, 4_MiB);
  EXPECT_EQ(other.Line(), "4711");
  EXPECT_EQ(other.Line(), "4712");
  EXPECT_EQ(Get(block.ptr() + 4_MiB), 4712u);
  Put(block.ptr() + 4_MiB, 99);
  EXPECT_EQ(other.End(), "99");
}

TEST_F(CudaIpcTest, MemoryThatWasGivenBackHereIsStillThereInTheOtherProcess) {
  std::vector<HandleId> handles;
  const Range range = MapHandles(1, &handles);
  Put(range.base, 5);
  OtherProcess other(upstream().Export(range.base, 4_B).value(), 0_B);
  EXPECT_EQ(other.Line(), "5");
  EXPECT_EQ(other.Line(), "6");
  GiveBack(range, handles);
  EXPECT_EQ(other.End(), "6");
}

TEST_F(CudaIpcTest, SeveralHandlesAreMappedInTheirOrder) {
  std::vector<HandleId> handles;
  const Bytes granule = upstream().granularity();
  const Range range = MapHandles(4, &handles);
  for (uint32_t i = 0; i < 4; ++i) Put(range.base + granule * i, 100 + i);
  const ExportedMemory exported = upstream().Export(range.base + granule + 512_B, granule * 2u).value();
  EXPECT_EQ(exported.offset, 512_B);
  {
    const ImportedMemory memory = ImportedMemory::Import(DeviceId(0), exported.handles).value();
    EXPECT_EQ(memory.size(), granule * 3u);
    for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(Get(memory.base() + granule * i), 101 + i);
    Put(memory.base() + exported.offset, 7);
    EXPECT_EQ(Get(range.base + granule + 512_B), 7u);
  }
  EXPECT_EQ(upstream().Export(range.base + granule, granule).value().offset, 0_B);
  GiveBack(range, handles);
}

TEST_F(CudaIpcTest, EqualBytesAreEqualMemory) {
  std::vector<HandleId> handles;
  Range range = MapHandles(2, &handles);
  const std::string first = upstream().Export(range.base, 100_B).value().handles;
  const size_t descriptors = OpenDescriptors();
  EXPECT_EQ(upstream().Export(range.base + 512_B, 100_B).value().handles, first);
  EXPECT_EQ(OpenDescriptors(), descriptors);
  EXPECT_NE(upstream().Export(range.base + upstream().granularity(), 100_B).value().handles, first);
  GiveBack(range, handles);
  handles.clear();
  range = MapHandles(2, &handles);  // other memory, which may get the same descriptor
  EXPECT_NE(upstream().Export(range.base, 100_B).value().handles, first);
  GiveBack(range, handles);
}

TEST_F(CudaIpcTest, NothingStaysBehindOnceBothHaveGivenItBack) {
  const Bytes free = upstream().memory_info().free;
  const size_t descriptors = OpenDescriptors();
  std::vector<HandleId> handles;
  const Range range = MapHandles(3, &handles);
  {
    ImportedMemory memory = ImportedMemory::Import(DeviceId(0), upstream().Export(range.base, range.size).value().handles).value();
    ImportedMemory moved = std::move(memory);
    ImportedMemory other = ImportedMemory::Import(DeviceId(0), upstream().Export(range.base, 1_B).value().handles).value();
    other = std::move(moved);
    EXPECT_EQ(other.size(), range.size);
    GiveBack(range, handles);
    if (machine().fake()) {
      EXPECT_EQ(upstream().memory_info().free, free - range.size);
    }
  }
  EXPECT_EQ(OpenDescriptors(), descriptors);
  if (machine().fake()) {
    EXPECT_EQ(upstream().memory_info().free, free);
  }
}

TEST_F(CudaIpcTest, WhatIsNotMappedIsNotExported) {
  std::vector<HandleId> handles;
  const Range range = MapHandles(2, &handles);
  const auto refused = [&](DevicePtr at, Bytes size) {
    const absl::Status status = upstream().Export(at, size).status();
    EXPECT_THAT(status.ToString(), HasSubstr("is memory of this upstream (device 0)"));
    return absl::IsNotFound(status);
  };
  EXPECT_TRUE(refused(range.base, range.size + 1_B));
  EXPECT_TRUE(refused(range.base + range.size, 1_B));
  EXPECT_TRUE(refused(DevicePtr(DeviceId(0), 4096), 1_B));
  EXPECT_TRUE(refused(DevicePtr(DeviceId(1), range.base.address()), 1_B));
  EXPECT_TRUE(refused(range.base, 0_B));
  EXPECT_TRUE(refused(range.base, Bytes::Max()));
  EXPECT_TRUE(upstream().Unmap(range.base, handles[0]).ok());
  EXPECT_TRUE(refused(range.base, range.size));
  EXPECT_TRUE(upstream().Map(range.base, handles[0]).ok());
  EXPECT_TRUE(upstream().Export(range.base, range.size).ok());
  GiveBack(range, handles);
}

TEST_F(CudaIpcTest, AnUpstreamThatWasNotOpenedForItNamesTheOption) {
  const std::unique_ptr<CudaUpstream> plain = OpenCuda();
  const absl::Status status = plain->Export(DevicePtr(DeviceId(0), 4096), 1_B).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(status.ToString(), HasSubstr("CudaOptions::exportable"));
}

TEST_F(CudaIpcTest, WhatIsPossibleCanBeOpened) {
  const CudaOptions possible = CudaUpstream::Possible(DeviceId(0)).value();
  EXPECT_TRUE(possible.exportable && possible.mapping);
  EXPECT_NE(OpenCuda(0, possible), nullptr);
  EXPECT_TRUE(absl::IsInvalidArgument(CudaUpstream::Possible(DeviceId(99)).status()));
  if (!machine().fake()) return;
  machine().InjectFaults("cuDeviceGetAttribute:1+=801");
  const CudaOptions none = CudaUpstream::Possible(DeviceId(0)).value();
  EXPECT_FALSE(none.exportable || none.gpu_direct_rdma || none.mapping);
  EXPECT_NE(OpenCuda(0, none), nullptr);
}

TEST_F(CudaIpcTest, BytesThatNoExportMadeAreRefused) {
  std::vector<HandleId> handles;
  const Range range = MapHandles(1, &handles);
  std::string bytes = upstream().Export(range.base, 1_B).value().handles;
  bytes[30] = static_cast<char>(bytes[30] ^ 1);
  const absl::Status status = ImportedMemory::Import(DeviceId(0), bytes).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.ToString(), HasSubstr("they were changed or cut"));
  EXPECT_TRUE(absl::IsInvalidArgument(ImportedMemory::Import(DeviceId(0), "").status()));
  GiveBack(range, handles);
}

TEST_F(CudaIpcTest, AForkedChildIsRefusedWithASentenceAndEndsQuietly) {
  std::vector<HandleId> handles;
  const Range range = MapHandles(1, &handles);
  const ExportedMemory exported = upstream().Export(range.base, 1_B).value();
  std::optional<ImportedMemory> memory = ImportedMemory::Import(DeviceId(0), exported.handles).value();
  const pid_t child = fork();
  if (child == 0) {
    int wrong = 0;
    for (const absl::Status& answer : {upstream().Export(range.base, 1_B).status(), upstream().AllowPeer(DeviceId(0)),
                                       memory->AllowPeer(DeviceId(0)), ImportedMemory::Import(DeviceId(0), exported.handles).status(),
                                       CudaUpstream::Possible(DeviceId(0)).status()}) {
      const bool right = absl::IsFailedPrecondition(answer) && answer.ToString().find("spawn") != std::string::npos;
      if (!right) std::fprintf(stderr, "in the child: %s\n", answer.ToString().c_str());
      wrong += !right;
    }
    memory.reset();
    _exit(wrong);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
  GiveBack(range, handles);
}

TEST_F(CudaIpcTest, AnEndDuringACaptureLeavesTheMemoryMapped) {
  if (!machine().fake()) GTEST_SKIP() << "leaves memory behind";
  std::vector<HandleId> handles;
  const Range range = MapHandles(1, &handles);
  std::optional<ImportedMemory> memory = ImportedMemory::Import(DeviceId(0), upstream().Export(range.base, 1_B).value().handles).value();
  const DevicePtr at = memory->base();
  const OwnStream own;
  ASSERT_EQ(machine().Call("cuStreamBeginCapture_v2", own.raw(), 0), cuda::kSuccess);
  memory.reset();
  void* graph = nullptr;
  EXPECT_NE(machine().Call("cuStreamEndCapture", own.raw(), &graph), cuda::kSuccess);  // as after every wait for the device
  Put(at, 3);
  EXPECT_EQ(Get(range.base), 3u);
  GiveBack(range, handles);
}

TEST_F(CudaIpcTest, EachCallThatFailsIsReportedAndLeavesNothingBehind) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  std::vector<std::string> functions;
#define GPULEDGER_NAME(name, version, parameters) functions.push_back(#name);
  GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_NAME)
#undef GPULEDGER_NAME
  int reported = 0;
  for (const std::string& function : functions) {
    for (int nth = 1; nth <= 4; ++nth) {
      std::vector<HandleId> handles;
      const Bytes free = upstream().memory_info().free;
      const size_t descriptors = OpenDescriptors();
      const Range range = MapHandles(2, &handles);
      const auto run = [&] {
        const absl::StatusOr<ExportedMemory> exported = upstream().Export(range.base, range.size);
        if (!exported.ok()) return exported.status();
        absl::StatusOr<ImportedMemory> memory = ImportedMemory::Import(DeviceId(0), exported->handles);
        return memory.ok() ? memory->AllowPeer(DeviceId(1)) : memory.status();
      };
      machine().InjectFaults(function + ":" + std::to_string(nth) + "=999");
      const absl::Status failed = run();
      machine().ClearFaults();
      reported += failed.ToString().find("CUDA_ERROR_UNKNOWN (999)") != std::string::npos;
      EXPECT_TRUE(run().ok()) << function << ", call " << nth;
      GiveBack(range, handles);
      EXPECT_EQ(OpenDescriptors(), descriptors) << function << ", call " << nth;
      // What no call could report came at the end of the import, which cannot try again; what the driver does not take back is its.
      if (!failed.ok() && function != "cuMemRelease") {
        EXPECT_EQ(upstream().memory_info().free, free) << function << ", call " << nth;
      }
    }
  }
  EXPECT_GE(reported, 15);
}

}  // namespace
}  // namespace gpuledger::testing
