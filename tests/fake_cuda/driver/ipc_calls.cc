// Memory and events shared between processes of one user, by the file of the device and a ticket in it.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "shared_file.h"
#include "stream.h"

namespace fake_cuda {
namespace {

struct IpcData {
  uint64_t ticket;
  uint64_t offset;
  uint64_t size;
  int32_t pid;
  int32_t fd;
};
static_assert(sizeof(IpcData) <= sizeof(CUipcMemHandle) && sizeof(IpcData) <= sizeof(CUipcEventHandle));

template <typename Handle>
void Store(Handle* handle, const IpcData& data) {
  std::memset(handle, 0, sizeof(*handle));
  std::memcpy(handle, &data, sizeof(data));
}

template <typename Handle>
IpcData Load(const Handle& handle) {
  IpcData data;
  std::memcpy(&data, &handle, sizeof(data));
  return data;
}

// One mapping for each handle, however often it is opened.
Allocation* FindOpened(const IpcData& data) {
  for (auto& [address, allocation] : driver().allocations.all()) {
    if (allocation.family != Family::kIpc || allocation.address - allocation.mapped != data.offset) continue;
    if (allocation.ipc_pid == data.pid && allocation.ipc_ticket == data.ticket) return &allocation;
  }
  return nullptr;
}

}  // namespace

CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr address) {
  const Allocation* const allocation = driver().allocations.Containing(address);
  if (handle == nullptr || allocation == nullptr || allocation->family != Family::kDevice)
    return CUDA_ERROR_INVALID_VALUE;
  Device& device = *driver().devices[size_t(allocation->device)];
  std::shared_ptr<Physical> physical = allocation->physical;
  uint64_t offset = 0;
  if (physical == nullptr) {
    const Segments::Segment& segment = device.small.Find(address);
    physical = segment.physical;
    offset = allocation->address - segment.address;
  }
  const MappedTicket* const ticket = physical->ticket();
  if (ticket == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  Store(handle, {ticket->offset(), offset, allocation->size, getpid(), device.memory.file().fd()});
  return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* out, CUipcMemHandle handle, unsigned flags) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
  const IpcData data = Load(handle);
  if (data.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;  // not in the process that owns it
  if (Allocation* const opened = FindOpened(data)) {
    ++opened->opened;
    *out = opened->address;
    return CUDA_SUCCESS;
  }
  ReceivedTicket received = OpenTicket(data.pid, data.fd, data.ticket);
  if (received.file == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Device* const device = FindDevice(received.device);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  std::shared_ptr<Physical> physical = device->memory.Import(std::move(received.file), data.ticket);
  if (physical == nullptr || data.size > physical->size() || data.offset > physical->size() - data.size) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Address base = ReserveAddresses(physical->size(), kGranule);
  if (base == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  physical->Map(base, 0, physical->size(), PROT_READ | PROT_WRITE);
  Allocation& allocation = driver().allocations.Add({.address = base + data.offset,
                                                     .size = data.size,
                                                     .family = Family::kIpc,
                                                     .device = device->ordinal,
                                                     .context = context,
                                                     .physical = std::move(physical),
                                                     .mapped = base});
  allocation.ipc_pid = data.pid;
  allocation.ipc_ticket = data.ticket;
  *out = allocation.address;
  return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr* out, CUipcMemHandle handle, unsigned flags) {
  return fake_cuda::cuIpcOpenMemHandle_v2(out, handle, flags);
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  Driver& state = driver();
  Allocation* const allocation = state.allocations.At(address);
  if (allocation == nullptr || allocation->family != Family::kIpc) {
    return Misuse(CUDA_ERROR_INVALID_VALUE, state.allocations.Explain(address));
  }
  if (--allocation->opened == 0) FreeAllocation(*allocation, "cuIpcCloseMemHandle");
  return CUDA_SUCCESS;
}

CUresult cuIpcGetEventHandle(CUipcEventHandle* handle, CUevent event_handle) {
  Event* event = nullptr;
  if (const CUresult result = FindEvent(event_handle, event); result != CUDA_SUCCESS) return result;
  if (handle == nullptr || (event->flags & CU_EVENT_INTERPROCESS) == 0 || event->opened)
    return CUDA_ERROR_INVALID_VALUE;
  const DeviceMemory& memory = event->context->device->memory;
  Store(handle, {event->ticket->offset(), 0, 0, getpid(), memory.file().fd()});
  return CUDA_SUCCESS;
}

CUresult cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle handle) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const IpcData data = Load(handle);
  if (data.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  const ReceivedTicket received = OpenTicket(data.pid, data.fd, data.ticket);
  if (received.file == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto event = std::make_unique<Event>();
  event->context = context;
  event->flags = CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING;
  event->ticket = MappedTicket::Map(*received.file, data.ticket);
  event->opened = true;
  *out = reinterpret_cast<CUevent>(driver().events.Add(std::move(event)));
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
