// Streams.
#include <fmt/format.h>

#include <cstring>

#include "capture.h"
#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

constexpr int kGreatestPriority = -5;

template <typename Use>
CUresult WithStream(CUstream handle, Use use) {
  Stream* stream = nullptr;
  const CUresult result = FindStream(handle, stream);
  return result != CUDA_SUCCESS ? result : use(*stream);
}

CUresult Create(CUstream* out, unsigned flags, int priority) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr || (flags & ~unsigned{CU_STREAM_NON_BLOCKING}) != 0) return CUDA_ERROR_INVALID_VALUE;
  auto stream = std::make_unique<Stream>();
  stream->id = driver().next_id++;
  stream->context = context;
  stream->flags = flags;
  stream->priority = std::min(0, std::max(kGreatestPriority, priority));
  *out = reinterpret_cast<CUstream>(driver().streams.Add(std::move(stream)));
  return CUDA_SUCCESS;
}

template <typename T>
CUresult Write(CUstream stream, CUdeviceptr address, T value) {
  if (address % sizeof(T) != 0 || !driver().allocations.Covers(address, sizeof(T))) return CUDA_ERROR_INVALID_VALUE;
  const auto work = [=] { std::memcpy(reinterpret_cast<void*>(address), &value, sizeof(value)); };
  return Submit(stream, {.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, .work = work});
}

}  // namespace

CUresult cuStreamCreate(CUstream* stream, unsigned flags) { return Create(stream, flags, 0); }
CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  return Create(stream, flags, priority);
}

CUresult cuStreamDestroy_v2(CUstream handle) {
  return WithStream(handle, [](Stream& stream) {
    if (stream.kind != Stream::Kind::kCreated) return CUDA_ERROR_INVALID_HANDLE;
    if (const std::shared_ptr<Capture> capture = stream.capture) Abandon(*capture);
    driver().streams.Remove(&stream);
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamDestroy(CUstream handle) { return fake_cuda::cuStreamDestroy_v2(handle); }

CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  if (priority == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return *priority = stream.priority, CUDA_SUCCESS; });
}

CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return *flags = stream.flags, CUDA_SUCCESS; });
}

CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return *id = stream.id, CUDA_SUCCESS; });
}

CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return *device = stream.context->device->ordinal, CUDA_SUCCESS; });
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(
      handle, [&](Stream& stream) { return *context = reinterpret_cast<CUcontext>(stream.context), CUDA_SUCCESS; });
}

CUresult cuStreamGetCtx_v2(CUstream handle, CUcontext* context, CUgreenCtx* green) {
  if (green != nullptr) *green = nullptr;
  return fake_cuda::cuStreamGetCtx(handle, context);
}

CUresult cuStreamQuery(CUstream handle) {
  return WithStream(handle, [](Stream& stream) {
    if (const CUresult refused = RefuseWaiting(stream); refused != CUDA_SUCCESS) return refused;
    return stream.done() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  });
}

CUresult cuStreamSynchronize(CUstream handle) {
  return WithStream(handle, [](Stream& stream) {
    if (const CUresult refused = RefuseWaiting(stream); refused != CUDA_SUCCESS) return refused;
    return Synchronize(stream);
  });
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
  Event* event = nullptr;
  if (const CUresult result = FindEvent(event_handle, event); result != CUDA_SUCCESS) return result;
  return WithStream(handle, [&](Stream& stream) {
    if (event->capture != nullptr) {
      // Waiting for work that is being captured makes the stream part of that capture.
      if (stream.capture != nullptr && stream.capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
      if (event->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      if (stream.kind == Stream::Kind::kLegacy) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      Join(event->capture, stream);
      for (Node* const node : event->tail) {
        if (std::find(stream.tail.begin(), stream.tail.end(), node) == stream.tail.end()) stream.tail.push_back(node);
      }
      return CUDA_SUCCESS;
    }
    if (stream.capture != nullptr) {
      return CaptureMisuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                           "the stream is captured and the event was recorded outside of that capture");
    }
    if (event->mark != nullptr && !event->mark->Done()) stream.waits.push_back(event->mark);
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamAddCallback(CUstream handle, CUstreamCallback callback, void* data, unsigned flags) {
  if (callback == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) {
    if (stream.capture != nullptr) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return Submit(stream, {.work = [=] { callback(handle, CUDA_SUCCESS, data); }});
  });
}

CUresult cuStreamAttachMemAsync(CUstream handle, CUdeviceptr address, size_t, unsigned) {
  return WithStream(handle, [&](Stream&) {
    return driver().allocations.Containing(address) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult cuStreamCopyAttributes(CUstream to, CUstream from) {
  return WithStream(to, [&](Stream& target) {
    return WithStream(from, [&](Stream& source) { return target.attributes = source.attributes, CUDA_SUCCESS; });
  });
}

CUresult cuStreamGetAttribute(CUstream handle, CUstreamAttrID attribute, CUstreamAttrValue* value) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) {
    const auto found = stream.attributes.find(attribute);
    *value = found != stream.attributes.end() ? found->second : CUstreamAttrValue{};
    if (attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY) value->priority = stream.priority;
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute, const CUstreamAttrValue* value) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return stream.attributes[attribute] = *value, CUDA_SUCCESS; });
}

CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  return Write(stream, address, value);
}
CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  return Write(stream, address, value);
}
CUresult cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned) {
  return Write(stream, address, value);
}
CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned) {
  return Write(stream, address, value);
}

}  // namespace fake_cuda
