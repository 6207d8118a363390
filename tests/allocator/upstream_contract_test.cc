// The contract suite over the upstreams that need no GPU.
#include "upstream_contract.h"

#include "gpuledger/fake_upstream.h"
#include "gpuledger/host_upstream.h"

namespace gpuledger::testing {
namespace {

const UpstreamMaker kUpstreams[] = {
    {"Fake", [] { return std::make_unique<FakeUpstream>(); }},
    {"FakeThatHoldsFences", [] { return std::make_unique<FakeUpstream>(FakeOptions{.hold_fences = true}); }},
    {"FakeWithoutAliasing", [] { return std::make_unique<FakeUpstream>(FakeOptions{.aliasing = false}); }},
    {"FakeWithoutMapping", [] { return std::make_unique<FakeUpstream>(FakeOptions{.mapping = false}); }},
    {"FakeOfLargeGranules", [] { return std::make_unique<FakeUpstream>(FakeOptions{.granularity = 32_MiB}); }},
    {"HostAnonymous", [] { return std::make_unique<HostAnonymousUpstream>(1_GiB); }},
    {"HostMemfd", [] { return std::make_unique<HostMemfdUpstream>(1_GiB); }},
};

std::string Name(const ::testing::TestParamInfo<UpstreamMaker>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(, UpstreamContract, ::testing::ValuesIn(kUpstreams), Name);
INSTANTIATE_TEST_SUITE_P(, UpstreamContractDeathTest, ::testing::ValuesIn(kUpstreams), Name);

}  // namespace
}  // namespace gpuledger::testing
