// Each case is wrong in one way and must not compile, as in tests/allocator/must_not_compile.cc.
#include "gpuledger/resource.h"

using namespace gpuledger;

void Cases(MemoryResource resource, CachingAllocator& allocator, ::cuda::stream_ref stream) {
#if defined(CASE_RESOURCE_WITHOUT_ALLOCATOR)
  MemoryResource none;
#elif defined(CASE_RESOURCE_FROM_NULL)
  MemoryResource none(nullptr);
#elif defined(CASE_ALLOCATOR_TAKEN_UNASKED)
  MemoryResource referring = allocator;
#elif defined(CASE_HOST_ACCESSIBLE)
  ::cuda::mr::any_resource<::cuda::mr::host_accessible> host(resource);
#elif defined(CASE_FORGOTTEN_MEMORY)
  resource.allocate(stream, 1000);
#elif defined(CASE_FORGOTTEN_SYNCHRONOUS_MEMORY)
  resource.allocate_sync(1000);
#elif defined(CASE_ALLOCATION_WITHOUT_STREAM)
  (void)resource.allocate(nullptr, 1000);
#elif !defined(CASE_NONE)
#error "no such case"
#endif
  (void)resource, (void)allocator, (void)stream;
}
