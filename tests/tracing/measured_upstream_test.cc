// The contract suite through an upstream that counts and times, and what it counts.
#include "measured_upstream.h"

#include "gpuledger/fake_upstream.h"
#include "gpuledger/host_upstream.h"
#include "upstream_contract.h"

namespace gpuledger::testing {
namespace {

using replay::MeasuredUpstream;

template <class Inner>
struct Holder {
  Inner inner;
};

template <class Inner>
class Measured : private Holder<Inner>, public MeasuredUpstream {
 public:
  Measured() : MeasuredUpstream(Holder<Inner>::inner) {}
};

const UpstreamMaker kUpstreams[] = {
    {"MeasuredFake", [] { return std::make_unique<Measured<FakeUpstream>>(); }},
    {"MeasuredHost", [] { return std::make_unique<Measured<HostMemfdUpstream>>(); }},
};

std::string Name(const ::testing::TestParamInfo<UpstreamMaker>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(, UpstreamContract, ::testing::ValuesIn(kUpstreams), Name);
INSTANTIATE_TEST_SUITE_P(, UpstreamContractDeathTest, ::testing::ValuesIn(kUpstreams), Name);

TEST(MeasuredUpstreamTest, CountsEachCallUnderItsNameAndTimesIt) {
  FakeUpstream fake;
  std::vector<FenceId> seen;
  MeasuredUpstream measured(fake, [&](Stream, FenceId fence) { seen.push_back(fence); });
  const Range range = measured.Reserve(4_MiB).value();
  const HandleId handle = measured.CreateHandle(2_MiB).value();
  EXPECT_TRUE(measured.Map(range.base, handle).ok());
  EXPECT_FALSE(measured.ReleaseHandle(handle).ok()) << "a call that fails is a call";
  EXPECT_TRUE(measured.Unmap(range.base, handle).ok());
  EXPECT_TRUE(measured.ReleaseHandle(handle).ok());
  EXPECT_TRUE(measured.Unreserve(range).ok());
  const Stream stream = Stream::Default(DeviceId(0));
  const std::vector<FenceId> fences = {measured.RecordFence(stream).value(), measured.RecordFence(stream).value()};
  EXPECT_EQ(seen, fences);
  EXPECT_EQ(measured.PassedFences(fences), fences);
  EXPECT_TRUE(measured.PollFence(fences[0]).value());
  EXPECT_TRUE(measured.WaitFence(fences[0]).ok());
  EXPECT_TRUE(measured.MakeStreamWait(stream, fences[0]).ok());
  for (const FenceId fence : fences) measured.DropFence(fence);

  const uint64_t expected[] = {1, 1, 1, 2, 1, 1, 2, 3, 1, 1};
  for (size_t i = 0; i < std::size(expected); ++i) {
    const auto call = static_cast<UpstreamCall>(i);
    EXPECT_EQ(measured.calls(call), expected[i]) << replay::CallName(call);
    EXPECT_EQ(measured.calls(call), fake.calls(call)) << replay::CallName(call);
  }
  EXPECT_GT(measured.nanoseconds(), 0u);
  EXPECT_GE(replay::UpstreamNanosecondsOfThisThread(), measured.nanoseconds());
}

}  // namespace
}  // namespace gpuledger::testing
