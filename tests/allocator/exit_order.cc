// A program whose blocks are freed after main, by a static that was made before the first use of the library: it must
// end with code 0 and say nothing (checked by ctest).
#include <memory>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/host_upstream.h"

namespace {

std::vector<gpuledger::Buffer>& LateBuffers() {
  static std::vector<gpuledger::Buffer> buffers;  // destroyed at exit, after the locals of main are gone
  return buffers;
}

gpuledger::CachingAllocator& Allocator() {
  static auto& upstream = *new gpuledger::HostAnonymousUpstream;  // leaked on purpose: buffers outlive main
  static auto& allocator = *new gpuledger::CachingAllocator(upstream, gpuledger::AllocatorOptions{});
  return allocator;
}

}  // namespace

int main() {
  LateBuffers();
  gpuledger::OwnerScope scope("exit/late", gpuledger::Role::kOther);
  for (unsigned i = 1; i < 20; ++i) {
    LateBuffers().push_back(*Allocator().Allocate(gpuledger::Bytes(i * 1000), gpuledger::Stream::Default(gpuledger::DeviceId{0})));
  }
  return Allocator().CheckInvariants().ok() ? 0 : 1;
}
