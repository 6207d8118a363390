// gpuledger::torch from the install: a tensor of LibTorch, charged to its owner.
#include <cstdio>

#include <ATen/ATen.h>
#include <gpuledger/torch.h>

using namespace gpuledger;

int main() {
  const absl::Status installed = pytorch::InstallCpuAllocator();
  if (!installed.ok()) {
    std::fprintf(stderr, "%s\n", installed.ToString().c_str());
    return 1;
  }
  const Ledger& ledger = pytorch::CpuAllocator()->ledger();
  const OwnerId owner = InternOwner("consumer/tensor");
  {
    const OwnerScope scope("consumer/tensor", Role::kActivation);
    const at::Tensor tensor = at::zeros({256, 256});
    if (ledger.usage(owner).in_use != 256_KiB) return 2;
  }
  if (!ledger.usage(owner).in_use.is_zero()) return 3;
  std::printf("LibTorch consumer: 256 KiB charged and credited\n");
  return 0;
}
