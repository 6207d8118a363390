// The contract suite over the CUDA upstream.
#include "machine.h"
#include "upstream_contract.h"

namespace gpuledger::testing {
namespace {

// A real driver keeps page tables and the like, as it sees fit, and its device may serve other programs.
const Bytes kNoise = Machine::Get().fake() ? 0_B : 64_MiB;

const UpstreamMaker kUpstreams[] = {
    {"Cuda", [] { return OpenCuda(); }, kNoise},
    {"CudaWithoutMapping", [] { return OpenCuda(0, {.mapping = false}); }, kNoise},
    {"CudaExportable", [] { return OpenCuda(0, {.exportable = true}); }, kNoise},
    {"CudaSecondDevice", [] { return OpenCuda(1); }, kNoise},
};

std::string Name(const ::testing::TestParamInfo<UpstreamMaker>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(, UpstreamContract, ::testing::ValuesIn(kUpstreams), Name);
INSTANTIATE_TEST_SUITE_P(, UpstreamContractDeathTest, ::testing::ValuesIn(kUpstreams), Name);

}  // namespace
}  // namespace gpuledger::testing
