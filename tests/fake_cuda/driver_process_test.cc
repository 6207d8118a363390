// The fake driver between processes, under threads, and as the environment sets it up.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "driver_test.h"

namespace fake_cuda_test {
namespace {

// Two processes that speak over a socket; the other one is forked before either calls CUDA.
class Pair {
 public:
  // Runs `other` in a child with its end of the socket.
  template <typename Other>
  explicit Pair(Other other) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) std::abort();
    child_ = fork();
    socket_ = ends[child_ == 0 ? 1 : 0];
    close(ends[child_ == 0 ? 0 : 1]);
    if (child_ == 0) {
      Start();
      other(*this);
      std::_Exit(testing::Test::HasFailure() ? EXIT_FAILURE : EXIT_SUCCESS);
    }
  }

  template <typename T>
  void Send(const T& value) {
    EXPECT_EQ(ssize_t(sizeof(value)), write(socket_, &value, sizeof(value)));
  }
  template <typename T>
  T Receive() {
    T value = {};
    EXPECT_EQ(ssize_t(sizeof(value)), recv(socket_, &value, sizeof(value), MSG_WAITALL));
    return value;
  }
  void SendFile(int fd) {
    char byte = 0;
    iovec data = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    EXPECT_EQ(1, sendmsg(socket_, &message, 0));
  }
  int ReceiveFile() {
    char byte = 0;
    iovec data = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    EXPECT_EQ(1, recvmsg(socket_, &message, 0));
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    return fd;
  }
  void Done() {
    int status = 0;
    waitpid(child_, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS) << "the other process failed";
  }

 private:
  int socket_ = -1;
  pid_t child_ = -1;
};

size_t Free() {
  size_t free = 0, total = 0;
  EXPECT_CU(CU(cuMemGetInfo)(&free, &total));
  return free;
}

TEST(Processes, ShareMemoryByIpcHandle) {
  EXPECT_IN_OWN_PROCESS({
    Pair pair([](Pair& owner) {
      const auto handles = owner.Receive<std::array<CUipcMemHandle, 2>>();
      CUdeviceptr large = 0, small = 0, again = 0;
      EXPECT_CU(CU(cuIpcOpenMemHandle)(&large, handles[0], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
      EXPECT_CU(CU(cuIpcOpenMemHandle)(&small, handles[1], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
      EXPECT_CU(CU(cuIpcOpenMemHandle)(&again, handles[1], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
      EXPECT_EQ(small, again);
      EXPECT_EQ(11, Host(large + 5 * kMiB)[0]);
      EXPECT_EQ(22, Host(small)[0]);
      EXPECT_EQ(80 * kGiB, Free());  // it is the other's memory
      Host(small)[0] = 33;
      EXPECT_CU(CU(cuIpcCloseMemHandle)(small));
      owner.Send(1);
      owner.Receive<int>();  // the owner has freed both
      EXPECT_EQ(11, Host(large + 5 * kMiB)[0]);
      EXPECT_CU(CU(cuIpcCloseMemHandle)(large));
      EXPECT_CU(CU(cuIpcCloseMemHandle)(again));
      owner.Send(2);
    });
    Start();
    CUdeviceptr large = 0, filler = 0, small = 0, own = 0;
    EXPECT_CU(CU(cuMemAlloc)(&large, 6 * kMiB));
    EXPECT_CU(CU(cuMemAlloc)(&filler, 1000));
    EXPECT_CU(CU(cuMemAlloc)(&small, 1000));
    Host(large + 5 * kMiB)[0] = 11;
    Host(small)[0] = 22;
    std::array<CUipcMemHandle, 2> handles;
    EXPECT_CU(CU(cuIpcGetMemHandle)(&handles[0], large));
    EXPECT_CU(CU(cuIpcGetMemHandle)(&handles[1], small));
    EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, CU(cuIpcOpenMemHandle)(&own, handles[0], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    pair.Send(handles);
    pair.Receive<int>();
    EXPECT_EQ(33, Host(small)[0]);
    EXPECT_CU(CU(cuMemFree)(large));
    EXPECT_CU(CU(cuMemFree)(small));
    EXPECT_CU(CU(cuMemFree)(filler));
    EXPECT_LT(Free(), 80 * kGiB);  // still open over there
    pair.Send(0);
    pair.Receive<int>();
    EXPECT_EQ(80 * kGiB, Free());
    pair.Done();
  });
}

TEST(Processes, ShareMemoryByFileDescriptorAlsoAfterItsOwnerReleasedIt) {
  EXPECT_IN_OWN_PROCESS({
    Pair pair([](Pair& owner) {
      const int fd = owner.ReceiveFile();
      CUmemGenericAllocationHandle handle = 0;
      EXPECT_CU(CU(cuMemImportFromShareableHandle)(&handle, reinterpret_cast<void*>(intptr_t{fd}),
                                                   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
      owner.Send(0);
      owner.Receive<int>();
      CUdeviceptr range = 0;
      EXPECT_CU(CU(cuMemAddressReserve)(&range, kGranule, 0, 0, 0));
      EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
      Access(range, kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
      EXPECT_EQ(77, Host(range)[0]);
    });
    Start();
    const CUmemAllocationProp properties = OnDevice(0, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    CUmemGenericAllocationHandle handle = 0;
    CUdeviceptr range = 0;
    EXPECT_CU(CU(cuMemCreate)(&handle, kGranule, &properties, 0));
    EXPECT_CU(CU(cuMemAddressReserve)(&range, kGranule, 0, 0, 0));
    EXPECT_CU(CU(cuMemMap)(range, kGranule, 0, handle, 0));
    Access(range, kGranule, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    Host(range)[0] = 77;
    int fd = -1;
    EXPECT_CU(CU(cuMemExportToShareableHandle)(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    pair.SendFile(fd);
    pair.Receive<int>();
    EXPECT_CU(CU(cuMemUnmap)(range, kGranule));
    EXPECT_CU(CU(cuMemRelease)(handle));
    pair.Send(0);
    pair.Done();
  });
}

TEST(Processes, ShareAPool) {
  EXPECT_IN_OWN_PROCESS({
    Pair pair([](Pair& owner) {
      const int fd = owner.ReceiveFile();
      auto data = owner.Receive<CUmemPoolPtrExportData>();
      CUmemoryPool pool = nullptr;
      CUdeviceptr address = 0, none = 0;
      EXPECT_CU(CU(cuMemPoolImportFromShareableHandle)(&pool, reinterpret_cast<void*>(intptr_t{fd}),
                                                       CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
      EXPECT_CU(CU(cuMemPoolImportPointer)(&address, pool, &data));
      EXPECT_EQ(CUDA_ERROR_NOT_PERMITTED, CU(cuMemAllocFromPoolAsync)(&none, 1, pool, nullptr));
      EXPECT_EQ(88, Host(address)[0]);
      EXPECT_CU(CU(cuMemFreeAsync)(address, nullptr));
      EXPECT_CU(CU(cuMemPoolDestroy)(pool));
    });
    Start();
    CUmemPoolProps props = {};
    props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    props.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    props.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    CUmemoryPool pool = nullptr;
    CUdeviceptr filler = 0, address = 0;
    EXPECT_CU(CU(cuMemPoolCreate)(&pool, &props));
    EXPECT_CU(CU(cuMemAllocFromPoolAsync)(&filler, 10000, pool, nullptr));
    EXPECT_CU(CU(cuMemAllocFromPoolAsync)(&address, 10000, pool, nullptr));
    Host(address)[0] = 88;
    int fd = -1;
    CUmemPoolPtrExportData data;
    EXPECT_CU(CU(cuMemPoolExportToShareableHandle)(&fd, pool, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    EXPECT_CU(CU(cuMemPoolExportPointer)(&data, address));
    pair.SendFile(fd);
    pair.Send(data);
    pair.Done();
  });
}

TEST(Processes, ShareEvents) {
  EXPECT_IN_OWN_PROCESS({
    Pair pair([](Pair& owner) {
      CUevent event = nullptr;
      EXPECT_CU(CU(cuIpcOpenEventHandle)(&event, owner.Receive<CUipcEventHandle>()));
      EXPECT_EQ(CUDA_ERROR_NOT_READY, CU(cuEventQuery)(event));
      owner.Send(0);
      EXPECT_CU(CU(cuEventSynchronize)(event));  // until the owner's work is done
      EXPECT_CU(CU(cuEventQuery)(event));
      owner.Send(0);
    });
    Start();
    CUevent event = nullptr;
    EXPECT_CU(CU(cuEventCreate)(&event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
    CU(fakeCudaHoldEvents)(1);
    EXPECT_CU(CU(cuEventRecord)(event, nullptr));
    CUipcEventHandle handle;
    EXPECT_CU(CU(cuIpcGetEventHandle)(&handle, event));
    pair.Send(handle);
    pair.Receive<int>();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CU(fakeCudaHoldEvents)(0);
    pair.Receive<int>();
    pair.Done();
  });
}

TEST(Processes, ForkedFromOneThatUsesCudaCannotUseIt) {
  EXPECT_IN_OWN_PROCESS({
    Start();
    const pid_t child = fork();
    if (child == 0) {
      CUdeviceptr address = 0;
      int version = 0;
      const char* name = nullptr;
      EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, CU(cuMemAlloc)(&address, 1));
      EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, CU(cuInit)(0));
      EXPECT_CU(CU(cuDriverGetVersion)(&version));
      EXPECT_EQ(13000, version);
      EXPECT_CU(CU(cuGetErrorName)(CUDA_ERROR_NOT_INITIALIZED, &name));
      std::_Exit(testing::Test::HasFailure() ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(0, status);
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuMemAlloc)(&address, 1));
  });
}

TEST(Initialisation, ComesFirst) {
  EXPECT_IN_OWN_PROCESS({
    CUdeviceptr address = 0;
    int count = 0;
    EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, CU(cuDeviceGetCount)(&count));
    EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, CU(cuMemAlloc)(&address, 1));
    EXPECT_CU(CU(cuInit)(0));
    EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, CU(cuMemAlloc)(&address, 1));
  });
}

TEST(Environment, IsRefusedWhereItMeansNothing) {
  const char* const wrong[] = {"FAKE_CUDA_MEMRY",   "1GiB",       "is unknown; known are",
                               "FAKE_CUDA_MEMORY",  "1GB",        "is no size such as 24GiB",
                               "FAKE_CUDA_DEVICES", "-1",         "is no number of devices",
                               "FAKE_CUDA_MISUSE",  "yes",        "is neither abort nor error",
                               "FAKE_CUDA_FAULTS",  "cuInit:0=1", "which is no fault such as",
                               "FAKE_CUDA_FAULTS",  "cuNone:1=2", "cuNone in the faults is no function of the driver",
                               "FAKE_CUDA_LATENCY", "cuNone=5",   "cuNone in the latencies is no function"};
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (size_t i = 0; i < std::size(wrong); i += 3) {
    const auto initialise = [&] {
      setenv(wrong[i], wrong[i + 1], 1);
      std::_Exit(CU(cuInit)(0));
    };
    EXPECT_EXIT(initialise(), testing::ExitedWithCode(CUDA_ERROR_INVALID_VALUE), wrong[i + 2]);
  }
}

TEST(Faults, HitTheCallsThatAreNamed) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_FAULTS", "cuMemAlloc:3=2,cuMemAlloc:5+=999,cuStreamQuery:*2=700", 1);
    Start();
    std::vector<int> results;
    for (int i = 0; i < 6; ++i) {
      CUdeviceptr address = 0;
      results.push_back(CU(cuMemAlloc)(&address, 1));
    }
    EXPECT_THAT(results, testing::ElementsAre(0, 0, 2, 0, 999, 999));
    results.clear();
    for (int i = 0; i < 4; ++i) results.push_back(Look<decltype(cuStreamQuery)>("cuStreamQuery_ptsz")(nullptr));
    EXPECT_THAT(results, testing::ElementsAre(0, 700, 0, 700));
    EXPECT_EQ(6u, CU(fakeCudaCallCount)("cuMemAlloc"));

    CU(fakeCudaClearFaults)();
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuMemAlloc)(&address, 1));
    EXPECT_EQ(1, CU(fakeCudaInjectFaults)("cuMemFree:2=1"));  // the second from now
    EXPECT_CU(CU(cuMemFree)(0));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFree)(address));
    EXPECT_CU(CU(cuMemFree)(address));  // the failed call did nothing
    EXPECT_EQ(0, CU(fakeCudaInjectFaults)("cuMemFree"));
  });
}

TEST(Trace, HasALineForEachCall) {
  EXPECT_IN_OWN_PROCESS({
    const std::string own = testing::TempDir() + "fake_cuda_trace_" + std::to_string(getpid());
    setenv("FAKE_CUDA_TRACE", own.c_str(), 1);
    Start();
    CUdeviceptr address = 0;
    EXPECT_CU(CU(cuMemAlloc)(&address, 12345));
    EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAlloc)(&address, size_t{1} << 42));
    std::ifstream in(own);
    std::stringstream text;
    text << in.rdbuf();
    EXPECT_THAT(text.str(), testing::ContainsRegex("[0-9]+ cuMemAlloc_v2 ->0x[0-9a-f]+ 12345 -> 0\n"));
    EXPECT_THAT(text.str(), testing::ContainsRegex("[0-9]+ cuMemAlloc_v2 0x[0-9a-f]+ 4398046511104 -> 2\n"));
    unlink(own.c_str());
  });
}

TEST(Latency, IsAddedToTheCallsThatAreNamed) {
  EXPECT_IN_OWN_PROCESS({
    setenv("FAKE_CUDA_LATENCY", "measured,cuCtxGetFlags=3000000", 1);
    Start();
    unsigned flags = 0;
    const auto start = std::chrono::steady_clock::now();
    EXPECT_CU(CU(cuCtxGetFlags)(&flags));
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(3));
  });
}

// Each thread checks that nobody else writes into what it was given.
TEST(Threads, MayCallAtTheSameTime) {
  EXPECT_IN_OWN_PROCESS({
    const CUcontext context = Start();
    const unsigned seed = std::random_device()();
    SCOPED_TRACE("seed " + std::to_string(seed));
    const auto work = [&](int number) {
      std::mt19937 random(seed + unsigned(number));
      EXPECT_CU(CU(cuCtxSetCurrent)(context));
      CUstream stream = nullptr;
      EXPECT_CU(CU(cuStreamCreate)(&stream, CU_STREAM_NON_BLOCKING));
      struct Piece {
        CUdeviceptr address;
        size_t size;
        bool ordered;
      };
      std::vector<Piece> pieces;
      const auto free_one = [&] {
        std::swap(pieces[random() % pieces.size()], pieces.back());
        const Piece piece = pieces.back();
        pieces.pop_back();
        EXPECT_EQ(number, Host(piece.address)[0]);
        EXPECT_EQ(number, Host(piece.address + piece.size)[-1]);
        EXPECT_CU(piece.ordered ? CU(cuMemFreeAsync)(piece.address, stream) : CU(cuMemFree)(piece.address));
      };
      for (int i = 0; i < 1500; ++i) {
        const size_t size = 4 * (1 + random() % (random() % 4 == 0 ? kMiB : 1000));
        const bool ordered = random() % 2 == 0;
        CUdeviceptr address = 0;
        EXPECT_CU(ordered ? CU(cuMemAllocAsync)(&address, size, stream) : CU(cuMemAlloc)(&address, size));
        EXPECT_CU(CU(cuMemsetD32Async)(address, unsigned(number), size / 4, stream));
        pieces.push_back({address, size, ordered});
        if (random() % 50 == 0) {
          EXPECT_CU(CU(cuStreamSynchronize)(stream));
        }
        while (pieces.size() > 20) free_one();
      }
      while (!pieces.empty()) free_one();
      EXPECT_CU(CU(cuStreamDestroy)(stream));
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back(work, i + 1);
    for (std::thread& thread : threads) thread.join();
    EXPECT_CU(CU(cuCtxSynchronize)());
    EXPECT_EQ(80 * kGiB, Free());
  });
}

}  // namespace
}  // namespace fake_cuda_test
