// Copies and fills.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "copies.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

enum Sides { kAny = 0, kToDevice = 1, kFromDevice = 2 };

// One side of a copy: device memory has to be there, host memory may be any.
CUresult CheckSide(Address address, uint64_t size, bool device, const char* side) {
  Allocations& allocations = driver().allocations;
  const Allocation* const inside = allocations.Containing(address);
  if (inside == nullptr && !device) return CUDA_SUCCESS;
  if (allocations.Covers(address, size)) return CUDA_SUCCESS;
  return Misuse(CUDA_ERROR_INVALID_VALUE,
                fmt::format("{} [{:#x}, {:#x}) is not memory that was allocated, mapped and made accessible", side,
                            address, address + size));
}

CUresult Copy(Address to, Address from, uint64_t size, unsigned sides, CUstream stream) {
  Stream* found = nullptr;
  if (const CUresult result = FindStream(stream, found); result != CUDA_SUCCESS) return result;
  if (size == 0) return CUDA_SUCCESS;
  if (to == 0 || from == 0) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = CheckSide(to, size, (sides & kToDevice) != 0, "the destination");
  if (result == CUDA_SUCCESS) result = CheckSide(from, size, (sides & kFromDevice) != 0, "the source");
  if (result != CUDA_SUCCESS) return result;
  const auto work = [=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size); };
  return Submit(*found, {.type = CU_GRAPH_NODE_TYPE_MEMCPY, .work = work});
}

CUresult Copy3D(const CUDA_MEMCPY3D* copy, CUstream stream) {
  if (copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::function<void()> work;
  if (const CUresult result = Prepare(*copy, work); result != CUDA_SUCCESS) return result;
  return Submit(stream, {.type = CU_GRAPH_NODE_TYPE_MEMCPY, .work = std::move(work)});
}

CUresult Copy2D(const CUDA_MEMCPY2D* copy, CUstream stream) {
  if (copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUDA_MEMCPY3D deep = {};
  deep.srcXInBytes = copy->srcXInBytes;
  deep.srcY = copy->srcY;
  deep.srcMemoryType = copy->srcMemoryType;
  deep.srcHost = copy->srcHost;
  deep.srcDevice = copy->srcDevice;
  deep.srcPitch = copy->srcPitch;
  deep.dstXInBytes = copy->dstXInBytes;
  deep.dstY = copy->dstY;
  deep.dstMemoryType = copy->dstMemoryType;
  deep.dstHost = copy->dstHost;
  deep.dstDevice = copy->dstDevice;
  deep.dstPitch = copy->dstPitch;
  deep.WidthInBytes = copy->WidthInBytes;
  deep.Height = copy->Height;
  deep.Depth = 1;
  return Copy3D(&deep, stream);
}

// The two contexts of a peer copy say what the addresses already say.
CUresult CopyPeer3D(const CUDA_MEMCPY3D_PEER* copy, CUstream stream) {
  if (copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUDA_MEMCPY3D deep = {};
  deep.srcXInBytes = copy->srcXInBytes;
  deep.srcY = copy->srcY;
  deep.srcZ = copy->srcZ;
  deep.srcMemoryType = copy->srcMemoryType;
  deep.srcHost = copy->srcHost;
  deep.srcDevice = copy->srcDevice;
  deep.srcPitch = copy->srcPitch;
  deep.srcHeight = copy->srcHeight;
  deep.dstXInBytes = copy->dstXInBytes;
  deep.dstY = copy->dstY;
  deep.dstZ = copy->dstZ;
  deep.dstMemoryType = copy->dstMemoryType;
  deep.dstHost = copy->dstHost;
  deep.dstDevice = copy->dstDevice;
  deep.dstPitch = copy->dstPitch;
  deep.dstHeight = copy->dstHeight;
  deep.WidthInBytes = copy->WidthInBytes;
  deep.Height = copy->Height;
  deep.Depth = copy->Depth;
  return Copy3D(&deep, stream);
}

CUresult CopyBatch(CUdeviceptr* to, CUdeviceptr* from, const size_t* sizes, size_t count, size_t* failed,
                   CUstream stream) {
  if (to == nullptr || from == nullptr || sizes == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    const CUresult result = Copy(to[i], from[i], sizes[i], kAny, stream);
    if (result == CUDA_SUCCESS) continue;
    if (failed != nullptr) *failed = i;
    return result;
  }
  return CUDA_SUCCESS;
}

CUresult Set(const Fill& fill, CUstream stream) {
  if (fill.width == 0 || fill.height == 0) return CUDA_SUCCESS;
  if (const CUresult result = Check(fill); result != CUDA_SUCCESS) return result;
  return Submit(stream, {.type = CU_GRAPH_NODE_TYPE_MEMSET, .work = [fill] { fill.Run(); }});
}

template <typename T>
CUresult Set(CUdeviceptr to, uint64_t pitch, T value, uint64_t width, uint64_t height, CUstream stream) {
  return Set(Fill{to, pitch, value, sizeof(T), width, height}, stream);
}

Address At(const void* host) { return reinterpret_cast<Address>(host); }

struct Side {
  Address start;
  uint64_t pitch, height;
  bool device;
};

CUresult SideOf(CUmemorytype type, const void* host, CUdeviceptr device, uint64_t pitch, uint64_t height,
                const CUDA_MEMCPY3D& copy, Side& side) {
  if (type == CU_MEMORYTYPE_ARRAY) return CUDA_ERROR_NOT_SUPPORTED;
  side = {type == CU_MEMORYTYPE_HOST ? At(host) : device, pitch != 0 ? pitch : copy.WidthInBytes,
          height != 0 ? height : copy.Height, type == CU_MEMORYTYPE_DEVICE};
  return side.start == 0 || side.pitch < copy.WidthInBytes ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

}  // namespace

void Fill::Run() const {
  for (uint64_t row = 0; row < height; ++row) {
    char* const start = reinterpret_cast<char*>(to + row * pitch);
    if (element == 1) {
      std::memset(start, int(value), width);
    } else if (element == 2) {
      std::fill_n(reinterpret_cast<uint16_t*>(start), width, uint16_t(value));
    } else {
      std::fill_n(reinterpret_cast<uint32_t*>(start), width, uint32_t(value));
    }
  }
}

CUresult Check(const Fill& fill) {
  if ((fill.element != 1 && fill.element != 2 && fill.element != 4) || fill.to % fill.element != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const uint64_t row = fill.width * fill.element;
  if (fill.height == 0 || (fill.height > 1 && fill.pitch < row)) return CUDA_ERROR_INVALID_VALUE;
  return CheckSide(fill.to, (fill.height - 1) * fill.pitch + row, true, "the destination");
}

CUresult Prepare(const CUDA_MEMCPY3D& copy, std::function<void()>& work) {
  Side from, to;
  CUresult result = SideOf(copy.srcMemoryType, copy.srcHost, copy.srcDevice, copy.srcPitch, copy.srcHeight, copy, from);
  if (result == CUDA_SUCCESS) {
    result = SideOf(copy.dstMemoryType, copy.dstHost, copy.dstDevice, copy.dstPitch, copy.dstHeight, copy, to);
  }
  if (result != CUDA_SUCCESS) return result;
  const uint64_t width = copy.WidthInBytes, height = copy.Height, depth = copy.Depth;
  if (width == 0 || height == 0 || depth == 0) return CUDA_SUCCESS;
  from.start += (copy.srcZ * from.height + copy.srcY) * from.pitch + copy.srcXInBytes;
  to.start += (copy.dstZ * to.height + copy.dstY) * to.pitch + copy.dstXInBytes;
  const auto extent = [&](const Side& side) { return ((depth - 1) * side.height + height - 1) * side.pitch + width; };
  result = CheckSide(from.start, extent(from), from.device, "the source");
  if (result == CUDA_SUCCESS) result = CheckSide(to.start, extent(to), to.device, "the destination");
  if (result != CUDA_SUCCESS) return result;
  work = [=] {
    for (uint64_t z = 0; z < depth; ++z) {
      for (uint64_t y = 0; y < height; ++y) {
        std::memmove(reinterpret_cast<void*>(to.start + (z * to.height + y) * to.pitch),
                     reinterpret_cast<const void*>(from.start + (z * from.height + y) * from.pitch), width);
      }
    }
  };
  return CUDA_SUCCESS;
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) { return Copy(to, from, n, kAny, nullptr); }
CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) { return Copy(to, from, n, kAny, s); }
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t n) {
  return Copy(to, At(from), n, kToDevice, nullptr);
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t n) { return Copy(At(to), from, n, kFromDevice, nullptr); }
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
  return Copy(to, from, n, kToDevice | kFromDevice, nullptr);
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t n, CUstream s) {
  return Copy(to, At(from), n, kToDevice, s);
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t n, CUstream s) {
  return Copy(At(to), from, n, kFromDevice, s);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  return Copy(to, from, n, kToDevice | kFromDevice, s);
}
CUresult cuMemcpyPeer(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t n) {
  return Copy(to, from, n, kToDevice | kFromDevice, nullptr);
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t n, CUstream s) {
  return Copy(to, from, n, kToDevice | kFromDevice, s);
}
CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* copy) { return Copy2D(copy, nullptr); }
CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* copy) { return Copy2D(copy, nullptr); }
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* copy, CUstream s) { return Copy2D(copy, s); }
CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D* copy) { return Copy3D(copy, nullptr); }
CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* copy, CUstream s) { return Copy3D(copy, s); }
CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* copy) { return CopyPeer3D(copy, nullptr); }
CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* copy, CUstream s) { return CopyPeer3D(copy, s); }

CUresult cuMemcpyBatchAsync(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count, CUmemcpyAttributes*,
                            size_t*, size_t, size_t* failed, CUstream s) {
  return CopyBatch(to, from, sizes, count, failed, s);
}
CUresult cuMemcpyBatchAsync_v2(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count, CUmemcpyAttributes*,
                               size_t*, size_t, CUstream s) {
  return CopyBatch(to, from, sizes, count, nullptr, s);
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char v, size_t n) { return Set(to, n, v, n, 1, nullptr); }
CUresult cuMemsetD16_v2(CUdeviceptr to, unsigned short v, size_t n) { return Set(to, n, v, n, 1, nullptr); }
CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned v, size_t n) { return Set(to, n, v, n, 1, nullptr); }
CUresult cuMemsetD2D8_v2(CUdeviceptr to, size_t pitch, unsigned char v, size_t width, size_t height) {
  return Set(to, pitch, v, width, height, nullptr);
}
CUresult cuMemsetD2D16_v2(CUdeviceptr to, size_t pitch, unsigned short v, size_t width, size_t height) {
  return Set(to, pitch, v, width, height, nullptr);
}
CUresult cuMemsetD2D32_v2(CUdeviceptr to, size_t pitch, unsigned v, size_t width, size_t height) {
  return Set(to, pitch, v, width, height, nullptr);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char v, size_t n, CUstream s) { return Set(to, n, v, n, 1, s); }
CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short v, size_t n, CUstream s) { return Set(to, n, v, n, 1, s); }
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned v, size_t n, CUstream s) { return Set(to, n, v, n, 1, s); }
CUresult cuMemsetD2D8Async(CUdeviceptr to, size_t pitch, unsigned char v, size_t width, size_t height, CUstream s) {
  return Set(to, pitch, v, width, height, s);
}
CUresult cuMemsetD2D16Async(CUdeviceptr to, size_t pitch, unsigned short v, size_t width, size_t height, CUstream s) {
  return Set(to, pitch, v, width, height, s);
}
CUresult cuMemsetD2D32Async(CUdeviceptr to, size_t pitch, unsigned v, size_t width, size_t height, CUstream s) {
  return Set(to, pitch, v, width, height, s);
}

}  // namespace fake_cuda
