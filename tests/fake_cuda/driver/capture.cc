#include "capture.h"

#include <fmt/format.h>

#include <algorithm>

#include "entry.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

CUresult Invalidate(Capture& capture, CUresult error, const std::string& sentence) {
  capture.invalidated = true;
  return CaptureMisuse(error, sentence);
}

Capture* CaptureOfBlockingStream(const Context& context) {
  for (const std::shared_ptr<Capture>& capture : driver().captures) {
    if (capture->invalidated) continue;
    for (const Stream* const stream : capture->streams) {
      if (stream->context == &context && stream->blocking()) return capture.get();
    }
  }
  return nullptr;
}

}  // namespace

CUstreamCaptureMode ExchangeThreadMode(CUstreamCaptureMode mode) { return std::exchange(thread_mode, mode); }

CUresult RefuseInCapture() {
  if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  const std::thread::id self = std::this_thread::get_id();
  bool refused = false;
  for (const std::shared_ptr<Capture>& capture : driver().captures) {
    if (capture->invalidated || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    const bool own = capture->thread == self;
    const bool other = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!own && !other) continue;
    capture->invalidated = true;
    refused = true;
  }
  if (!refused) return CUDA_SUCCESS;
  return CaptureMisuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the call is not allowed while a stream is captured");
}

CUresult RefuseLegacyWork(Context& context) {
  Capture* const capture = CaptureOfBlockingStream(context);
  if (capture == nullptr) return CUDA_SUCCESS;
  return Invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                    "work on the legacy stream would wait for a blocking stream that is captured");
}

bool LegacyWorkRefused(const Context& context) { return CaptureOfBlockingStream(context) != nullptr; }

CUresult RefuseWaiting(Stream& stream) {
  if (stream.capture != nullptr) {
    return Invalidate(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "the stream is captured: its work does not run");
  }
  return stream.kind == Stream::Kind::kLegacy ? RefuseLegacyWork(*stream.context) : CUDA_SUCCESS;
}

CUresult RefuseWaiting(Context& context) {
  for (const std::shared_ptr<Capture>& capture : driver().captures) {
    if (capture->origin->context == &context && !capture->invalidated) {
      return Invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream of the context is captured");
    }
  }
  return CUDA_SUCCESS;
}

void Join(const std::shared_ptr<Capture>& capture, Stream& stream) {
  if (stream.capture == capture) return;
  stream.capture = capture;
  stream.tail.clear();
  capture->streams.push_back(&stream);
}

void Abandon(Capture& capture) {
  capture.invalidated = true;
  std::erase_if(driver().captures, [&](const std::shared_ptr<Capture>& other) { return other.get() == &capture; });
  Graph* const graph = std::exchange(capture.graph, nullptr);
  const std::vector<Stream*> streams = std::exchange(capture.streams, {});
  for (const auto& [handle, event] : driver().events.live()) {
    if (event->capture.get() == &capture) event->tail.clear();
  }
  for (Stream* const stream : streams) {
    stream->tail.clear();
    stream->capture = nullptr;
  }
  if (graph != nullptr && capture.owns_graph) DestroyGraph(*graph);
}

}  // namespace fake_cuda
