// What the host upstreams promise beyond the contract: what pages cost, who sees them, and what never lies in a range.
#include "gpuledger/host_upstream.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gpuledger {
namespace {

const Bytes kUnit = 2_MiB;

char* At(DevicePtr address) { return static_cast<char*>(address.unsafe_host_pointer()); }

Bytes Resident() {
  uint64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return Bytes(static_cast<uint64_t>(sysconf(_SC_PAGESIZE))) * resident;
}

// Whether the byte at `address` can be read, without touching it from here.
bool Readable(DevicePtr address) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const bool readable = syscall(SYS_write, ends[1], At(address), 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return readable;
}

// Runs `work` in a forked child; true if it returned true there.
bool InChild(const std::function<bool()>& work) {
  const pid_t child = fork();
  if (child == 0) _exit(work() ? 0 : 1);
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

template <class T>
class HostUpstreamTest : public ::testing::Test {
 protected:
  T upstream_{Bytes(uint64_t{4} << 30)};
};
using Forms = ::testing::Types<HostAnonymousUpstream, HostMemfdUpstream>;
TYPED_TEST_SUITE(HostUpstreamTest, Forms);

TYPED_TEST(HostUpstreamTest, PagesCostNothingUntilTouchedAndAreBackOnceReleased) {
  TypeParam& upstream = this->upstream_;
  const Bytes size = 1_GiB, touched = 64_MiB, slack = 16_MiB;
  const Range range = upstream.Reserve(size).value();
  const HandleId handle = upstream.CreateHandle(size).value();
  const Bytes before = Resident();
  ASSERT_TRUE(upstream.Map(range.base, handle).ok());
  EXPECT_LT(Resident(), before + slack);
  std::memset(At(range.base), 1, touched.count());
  const Bytes most = Resident();
  EXPECT_GT(most + slack, before + touched);
  ASSERT_TRUE(upstream.Unmap(range.base, handle).ok());
  ASSERT_TRUE(upstream.ReleaseHandle(handle).ok());
  EXPECT_LT(Resident() + touched, most + slack);
}

TYPED_TEST(HostUpstreamTest, AddressesAreReadableWhileMappedAndOnlyThen) {
  TypeParam& upstream = this->upstream_;
  const Range range = upstream.Reserve(kUnit * 2u).value();
  const HandleId handle = upstream.CreateHandle(kUnit).value();
  EXPECT_FALSE(Readable(range.base));
  ASSERT_TRUE(upstream.Map(range.base, handle).ok());
  EXPECT_TRUE(Readable(range.base));
  EXPECT_FALSE(Readable(range.base + kUnit));
  ASSERT_TRUE(upstream.Unmap(range.base, handle).ok());
  EXPECT_FALSE(Readable(range.base));
}

TYPED_TEST(HostUpstreamTest, TheTotalIsPhysicalMemoryUnlessGiven) {
  EXPECT_EQ(TypeParam().memory_info().total, PhysicalMemory());
  EXPECT_EQ(this->upstream_.memory_info().total, 4_GiB);
}

TYPED_TEST(HostUpstreamTest, ErrorsNameTheCallErrnoAndARemedy) {
  const absl::Status status = this->upstream_.Reserve(Bytes(uint64_t{1} << 62)).status();
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(::testing::HasSubstr("Reserve: mmap"), ::testing::HasSubstr("ENOMEM"),
                               ::testing::HasSubstr("ulimit -v"), ::testing::HasSubstr("vm.max_map_count")));
}

// While handles move in and out, a second thread maps and unmaps memory of its own: none of it may lie in `range`,
// where the next Map would destroy it.
template <class T>
bool RangeStaysOurs(T& upstream, int rounds) {
  const Range range = upstream.Reserve(kUnit).value();
  const HandleId handle = upstream.CreateHandle(kUnit).value();
  std::atomic<bool> stop = false, landed = false;
  std::thread other([&] {
    while (!stop.load()) {
      void* const got = mmap(nullptr, kUnit.count(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (got == MAP_FAILED) continue;
      const auto first = reinterpret_cast<uint64_t>(got), last = first + kUnit.count() - 1;
      if (last >= range.base.address() && first < (range.base + range.size).address()) landed = true;
      munmap(got, kUnit.count());
    }
  });
  bool ok = true;
  for (int round = 0; round < rounds && ok; ++round) {
    ok = upstream.Map(range.base, handle).ok() && upstream.Unmap(range.base, handle).ok();
  }
  stop = true;
  other.join();
  return ok && !landed;
}

TYPED_TEST(HostUpstreamTest, NoOtherMappingEverLandsInAReservedRange) {
  EXPECT_TRUE(RangeStaysOurs(this->upstream_, 2000));
}

// ---- forked children

TEST(HostAnonymousUpstreamTest, ForkedChildrenSeeMemoryCopyOnWrite) {
  HostAnonymousUpstream upstream(1_GiB);
  const Range range = upstream.Reserve(kUnit * 4u).value();
  const HandleId mapped = upstream.CreateHandle(kUnit).value(), parked = upstream.CreateHandle(kUnit).value();
  ASSERT_TRUE(upstream.Map(range.base + kUnit, parked).ok());
  At(range.base + kUnit)[0] = 'p';
  ASSERT_TRUE(upstream.Unmap(range.base + kUnit, parked).ok());
  ASSERT_TRUE(upstream.Map(range.base, mapped).ok());
  At(range.base)[0] = 'm';
  EXPECT_TRUE(InChild([&] {
    if (At(range.base)[0] != 'm') return false;
    At(range.base)[0] = 'c';
    // The upstream works on in the child, on the child's own copy.
    if (!upstream.Unmap(range.base, mapped).ok() || !upstream.Map(range.base + kUnit * 2u, mapped).ok()) return false;
    if (!upstream.Map(range.base, parked).ok()) return false;
    const bool kept = At(range.base + kUnit * 2u)[0] == 'c' && At(range.base)[0] == 'p';
    At(range.base)[0] = 'x';
    return kept && upstream.Unmap(range.base, parked).ok() && upstream.ReleaseHandle(parked).ok();
  }));
  EXPECT_EQ(At(range.base)[0], 'm');
  ASSERT_TRUE(upstream.Map(range.base + kUnit, parked).ok());
  EXPECT_EQ(At(range.base + kUnit)[0], 'p');
}

TEST(HostMemfdUpstreamTest, ForkedChildrenShareMemory) {
  HostMemfdUpstream upstream(1_GiB);
  const Range range = upstream.Reserve(kUnit).value();
  ASSERT_TRUE(upstream.Map(range.base, upstream.CreateHandle(kUnit).value()).ok());
  EXPECT_TRUE(InChild([&] { return (At(range.base)[0] = 'c') == 'c'; }));
  EXPECT_EQ(At(range.base)[0], 'c');
}

// ---- where mremap cannot leave a mapping behind

// From here on mremap knows no MREMAP_DONTUNMAP in this process, as before Linux 5.7.
bool ForgetDontUnmap() {
#if defined(__x86_64__)
  sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[3])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 4, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{sizeof(rules) / sizeof(rules[0]), rules};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
#else
  return false;
#endif
}

TEST(HostAnonymousUpstreamTest, OnOldKernelsContentIsCopiedAndUntouchedPagesStayUntouched) {
  if (!InChild(ForgetDontUnmap)) GTEST_SKIP() << "this system allows no seccomp filter";
  EXPECT_TRUE(InChild([] {
    HostAnonymousUpstream upstream(4_GiB);
    const Bytes size = 256_MiB;
    const Range range = upstream.Reserve(size).value();
    const HandleId handle = upstream.CreateHandle(size).value();
    if (!ForgetDontUnmap() || !upstream.Map(range.base, handle).ok()) return false;
    std::memset(At(range.base), 'a', 3'000'000);
    At(range.base)[size.count() - 1] = 'z';
    const Bytes before = Resident();
    if (!upstream.Unmap(range.base, handle).ok() || Readable(range.base)) return false;
    if (Resident() > before + 32_MiB || !upstream.Map(range.base, handle).ok()) return false;
    const char* const bytes = At(range.base);
    return bytes[0] == 'a' && std::memcmp(bytes, bytes + 1, 2'999'999) == 0 && bytes[3'000'000] == 0 &&
           bytes[size.count() - 1] == 'z';
  }));
}

TEST(HostAnonymousUpstreamTest, OnOldKernelsNoOtherMappingLandsInARangeEither) {
  if (!InChild(ForgetDontUnmap)) GTEST_SKIP() << "this system allows no seccomp filter";
  EXPECT_TRUE(InChild([] {
    HostAnonymousUpstream upstream(1_GiB);
    return ForgetDontUnmap() && RangeStaysOurs(upstream, 200);
  }));
}

TEST(HostAnonymousUpstreamTest, AMappingThatSomeoneSplitIsCopied) {
  HostAnonymousUpstream upstream(1_GiB);
  const Range range = upstream.Reserve(kUnit).value();
  const HandleId handle = upstream.CreateHandle(kUnit).value();
  ASSERT_TRUE(upstream.Map(range.base, handle).ok());
  std::memset(At(range.base), 's', kUnit.count());
  ASSERT_EQ(madvise(At(range.base), kUnit.count() / 2, MADV_NOHUGEPAGE), 0);
  ASSERT_TRUE(upstream.Unmap(range.base, handle).ok());
  ASSERT_TRUE(upstream.Map(range.base, handle).ok());
  EXPECT_EQ(At(range.base)[0], 's');
  EXPECT_EQ(At(range.base)[kUnit.count() - 1], 's');
}

}  // namespace
}  // namespace gpuledger
