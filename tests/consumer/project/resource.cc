// gpuledger::resource from the install, with a CCCL of one's own. Over the fake upstream, so that it runs without a GPU.
#include <cstdio>
#include <memory>

#include <gpuledger/fake_upstream.h>
#include <gpuledger/resource.h>

using namespace gpuledger;

int main() {
  MemoryResource resource(std::make_unique<FakeUpstream>());
  cuda::mr::any_resource<cuda::mr::device_accessible> any(resource);
  const cuda::stream_ref stream(cudaStream_t{});
  void* const pointer = any.allocate(stream, 1000, 256);
  if (resource.allocator().totals().in_use != 1024_B) return 1;
  any.deallocate(stream, pointer, 1000, 256);
  try {
    (void)any.allocate(stream, size_t{1} << 50, 256);
    return 2;
  } catch (const OutOfMemoryError&) {
  }
  std::printf("cuda::mr consumer: 1000 B charged as 1024 B, a pebibyte refused\n");
  return resource.allocator().CheckInvariants().ok() ? 0 : 3;
}
