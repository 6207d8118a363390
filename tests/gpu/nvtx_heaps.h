// Tells tools about an allocator through NVTX: what it reserves is a heap, each block a region of it with its owner's
// name. Under `compute-sanitizer --nvtx=yes` an access outside the blocks is an error, although the memory is mapped.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include <nvtx3/nvToolsExtMem.h>

#include "gpuledger/owner.h"
#include "gpuledger/record.h"

namespace gpuledger::gpu {

// A heap is what one record of kind kMapped covers: blocks must not reach from one into the next.
class NvtxHeaps final : public RecordSink {
 public:
  void Write(const Record& record) noexcept override {
    const std::lock_guard lock(mutex_);
    const void* const address = reinterpret_cast<const void*>(record.address);
    switch (record.kind) {
      case RecordKind::kMapped:
        AddHeap(address, record.charged.count());
        break;
      case RecordKind::kUnmapped:
        heaps_.erase(address);  // the tool has forgotten the heap with its memory, which is gone by now
        break;
      case RecordKind::kAllocate:
        AddBlock(address, record.requested.count(), std::string(OwnerName(record.owner)));
        break;
      case RecordKind::kFreeCompleted:
        RemoveBlock(address);
        break;
      default:
        break;
    }
  }

  // Whether a tool listens: without one every call here is a no-op.
  bool has_tool() const { return has_tool_; }

 private:
  void AddHeap(const void* address, size_t size) {
    const nvtxMemVirtualRangeDesc_t range = {size, address};
    nvtxMemHeapDesc_t heap = {};
    heap.extCompatID = NVTX_EXT_COMPATID_MEM;
    heap.structSize = sizeof(heap);
    heap.usage = NVTX_MEM_HEAP_USAGE_TYPE_SUB_ALLOCATOR;
    heap.type = NVTX_MEM_TYPE_VIRTUAL_ADDRESS;
    heap.typeSpecificDescSize = sizeof(range);
    heap.typeSpecificDesc = &range;
    const nvtxMemHeapHandle_t handle = nvtxMemHeapRegister(domain_, &heap);
    // Without a tool the headers return null; NVTX_MEM_HEAP_HANDLE_NO_TOOL, which a tool may return, is -1 (no C++).
    has_tool_ = has_tool_ || (handle != nullptr && handle != reinterpret_cast<nvtxMemHeapHandle_t>(intptr_t{-1}));
    heaps_[address] = handle;
  }
  void AddBlock(const void* address, size_t size, const std::string& owner) {
    auto heap = heaps_.upper_bound(address);
    if (heap == heaps_.begin()) return;
    --heap;
    const nvtxMemVirtualRangeDesc_t range = {size, address};
    nvtxMemRegionsRegisterBatch_t regions = {};
    regions.extCompatID = NVTX_EXT_COMPATID_MEM;
    regions.structSize = sizeof(regions);
    regions.regionType = NVTX_MEM_TYPE_VIRTUAL_ADDRESS;
    regions.heap = heap->second;
    regions.regionCount = 1;
    regions.regionDescElementSize = sizeof(range);
    regions.regionDescElements = &range;
    nvtxMemRegionsRegister(domain_, &regions);

    nvtxMemRegionNameDesc_t name = {};
    name.regionRefType = NVTX_MEM_REGION_REF_TYPE_POINTER;
    name.nameType = NVTX_MESSAGE_TYPE_ASCII;
    name.region.pointer = address;
    name.name.ascii = owner.c_str();
    nvtxMemRegionsNameBatch_t names = {};
    names.extCompatID = NVTX_EXT_COMPATID_MEM;
    names.structSize = sizeof(names);
    names.regionCount = 1;
    names.regionElementSize = sizeof(name);
    names.regionElements = &name;
    nvtxMemRegionsName(domain_, &names);
  }
  void RemoveBlock(const void* address) {
    nvtxMemRegionRef_t reference = {};
    reference.pointer = address;
    nvtxMemRegionsUnregisterBatch_t regions = {};
    regions.extCompatID = NVTX_EXT_COMPATID_MEM;
    regions.structSize = sizeof(regions);
    regions.refType = NVTX_MEM_REGION_REF_TYPE_POINTER;
    regions.refCount = 1;
    regions.refElementSize = sizeof(reference);
    regions.refElements = &reference;
    nvtxMemRegionsUnregister(domain_, &regions);
  }

  const nvtxDomainHandle_t domain_ = nvtxDomainCreateA("gpuledger");
  std::mutex mutex_;
  std::map<const void*, nvtxMemHeapHandle_t> heaps_;
  bool has_tool_ = false;
};

}  // namespace gpuledger::gpu
