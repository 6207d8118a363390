// Events.
#include <fmt/format.h>

#include <chrono>

#include "capture.h"
#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

constexpr unsigned kFlags = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;

uint64_t Now() { return uint64_t(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1)); }

template <typename Use>
CUresult WithEvent(CUevent handle, Use use) {
  Event* event = nullptr;
  const CUresult result = FindEvent(handle, event);
  return result != CUDA_SUCCESS ? result : use(*event);
}

// Takes the event's place in the stream: finished at once, unless work is held.
void TakePlace(Event& event, Stream& stream) {
  Marks before = std::move(stream.waits);
  stream.waits.clear();
  if (stream.last != nullptr) before.push_back(stream.last);
  event.mark = stream.last = driver().held.Make(before);
  if (event.ticket == nullptr) return;
  const uint64_t sequence = (*event.ticket)->recorded.fetch_add(1) + 1;
  if (event.mark != nullptr) {
    event.mark->shared = event.ticket;
    event.mark->sequence = sequence;
  } else {
    (*event.ticket)->finished.store(sequence);
  }
}

// What another process recorded last.
void Refresh(Event& event) {
  if (!event.opened || event.mark != nullptr) return;
  auto mark = std::make_shared<Mark>();
  mark->shared = event.ticket;
  mark->sequence = (*event.ticket)->recorded.load();
  mark->foreign = true;
  if (!mark->Done()) event.mark = std::move(mark);
}

CUresult Record(CUevent event_handle, CUstream stream_handle, unsigned flags) {
  if ((flags & ~unsigned{CU_EVENT_RECORD_EXTERNAL}) != 0) return CUDA_ERROR_INVALID_VALUE;
  return WithEvent(event_handle, [&](Event& event) {
    Stream* stream = nullptr;
    if (const CUresult result = FindStream(stream_handle, stream); result != CUDA_SUCCESS) return result;
    if (stream->context != event.context) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture != nullptr) {
      if (stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      if (flags != 0) return Submit(*stream, {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD});
      event.capture = stream->capture;
      event.tail = stream->tail;
      return CUDA_SUCCESS;
    }
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;  // external: in a capture only
    if (stream->kind == Stream::Kind::kLegacy) {
      if (const CUresult refused = RefuseLegacyWork(*stream->context); refused != CUDA_SUCCESS) return refused;
    }
    event.capture = nullptr;
    event.tail.clear();
    event.recorded = true;
    event.time_ns = Now();
    TakePlace(event, *stream);
    return CUDA_SUCCESS;
  });
}

CUresult RefuseCaptured(Event& event) {
  if (event.capture == nullptr) return CUDA_SUCCESS;
  event.capture->invalidated = true;
  return CaptureMisuse(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a stream that is captured");
}

}  // namespace

CUresult cuEventCreate(CUevent* out, unsigned flags) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr || (flags & ~kFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  const bool shared = (flags & CU_EVENT_INTERPROCESS) != 0;
  if (shared && (flags & CU_EVENT_DISABLE_TIMING) == 0) return CUDA_ERROR_INVALID_VALUE;
  auto event = std::make_unique<Event>();
  event->context = context;
  event->flags = flags;
  if (shared) event->ticket = context->device->memory.NewTicket();
  *out = reinterpret_cast<CUevent>(driver().events.Add(std::move(event)));
  return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) { return Record(event, stream, 0); }
CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) { return Record(event, stream, flags); }

CUresult cuEventQuery(CUevent handle) {
  return WithEvent(handle, [](Event& event) {
    if (const CUresult refused = RefuseCaptured(event); refused != CUDA_SUCCESS) return refused;
    Refresh(event);
    if (event.mark != nullptr && !event.mark->Done()) return CUDA_ERROR_NOT_READY;
    event.mark = nullptr;
    return CUDA_SUCCESS;
  });
}

CUresult cuEventSynchronize(CUevent handle) {
  return WithEvent(handle, [](Event& event) {
    if (const CUresult refused = RefuseCaptured(event); refused != CUDA_SUCCESS) return refused;
    Refresh(event);
    if (event.mark != nullptr) WaitFor(event.mark);
    return CUDA_SUCCESS;
  });
}

CUresult cuEventDestroy_v2(CUevent handle) {
  return WithEvent(handle, [](Event& event) { return driver().events.Remove(&event), CUDA_SUCCESS; });
}

CUresult cuEventDestroy(CUevent handle) { return fake_cuda::cuEventDestroy_v2(handle); }

CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) {
  if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithEvent(from, [&](Event& first) {
    return WithEvent(to, [&](Event& last) {
      const unsigned flags = first.flags | last.flags;
      if ((flags & CU_EVENT_DISABLE_TIMING) != 0 || !first.recorded || !last.recorded) return CUDA_ERROR_INVALID_HANDLE;
      for (const Event* const event : {&first, &last}) {
        if (event->mark != nullptr && !event->mark->Done()) return CUDA_ERROR_NOT_READY;
      }
      *milliseconds = float(double(int64_t(last.time_ns - first.time_ns)) / 1e6);
      return CUDA_SUCCESS;
    });
  });
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) {
  return fake_cuda::cuEventElapsedTime_v2(milliseconds, from, to);
}

}  // namespace fake_cuda
