// Tensors of our allocator that die after main(): one made before the install, one after, one by a static destructor.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "gpuledger/torch.h"

namespace {

at::Tensor made_late;  // constructed before, so destroyed after, everything of main()

struct AllocatesLast {
  ~AllocatesLast() {
    at::Tensor last = at::empty({1000});
    last.data_ptr<float>()[999] = 1;
    made_late = last;
  }
} allocates_last;

}  // namespace

int main() {
  if (!gpuledger::pytorch::InstallCpuAllocator().ok()) return 1;
  const gpuledger::OwnerScope scope("static", gpuledger::Role::kCache);
  static at::Tensor in_main = at::empty({1 << 20});
  made_late = at::empty({100, 100});
  gpuledger::pytorch::WatchSource(made_late, gpuledger::InternOwner("static"));
  return gpuledger::pytorch::CpuAllocator()->CheckInvariants().ok() ? 0 : 1;
}
