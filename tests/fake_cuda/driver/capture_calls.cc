// Stream capture.
#include <fmt/format.h>

#include <algorithm>

#include "capture.h"
#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

template <typename Use>
CUresult WithStream(CUstream handle, Use use) {
  Stream* stream = nullptr;
  const CUresult result = FindStream(handle, stream);
  return result != CUDA_SUCCESS ? result : use(*stream);
}

CUresult Begin(Stream& stream, CUstreamCaptureMode mode, Graph* into) {
  if (stream.kind == Stream::Kind::kLegacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream.capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  auto capture = std::make_shared<Capture>();
  capture->id = driver().next_id++;
  capture->mode = mode;
  capture->owns_graph = into == nullptr;
  capture->graph = into != nullptr ? into : driver().graphs.Add(std::make_unique<Graph>());
  capture->origin = &stream;
  capture->thread = std::this_thread::get_id();
  driver().captures.push_back(capture);
  Join(capture, stream);
  return CUDA_SUCCESS;
}

// Whether all that other streams did in the capture comes before the tail of the stream that began it.
bool AllJoined(const Capture& capture) {
  std::vector<Node*> open = capture.origin->tail;
  std::vector<const Node*> reached;
  while (!open.empty()) {
    const Node* const node = open.back();
    open.pop_back();
    if (std::find(reached.begin(), reached.end(), node) != reached.end()) continue;
    reached.push_back(node);
    open.insert(open.end(), node->dependencies.begin(), node->dependencies.end());
  }
  for (const Stream* const stream : capture.streams) {
    for (const Node* const node : stream->tail) {
      if (std::find(reached.begin(), reached.end(), node) == reached.end()) return false;
    }
  }
  return true;
}

CUresult End(Stream& stream, CUgraph* out) {
  const std::shared_ptr<Capture> capture = stream.capture;
  *out = nullptr;
  if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->origin != &stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  if (capture->thread != std::this_thread::get_id() && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  CUresult result = capture->invalidated  ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                    : AllJoined(*capture) ? CUDA_SUCCESS
                                          : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  if (result == CUDA_SUCCESS) {
    *out = reinterpret_cast<CUgraph>(capture->graph);
    capture->owns_graph = false;  // the caller's from here on
  }
  Abandon(*capture);
  return result;
}

struct InfoOut {
  CUstreamCaptureStatus* status;
  cuuint64_t* id;
  CUgraph* graph = nullptr;
  const CUgraphNode** dependencies = nullptr;
  const CUgraphEdgeData** edges = nullptr;
  size_t* count = nullptr;
};

// What `dependencies` points to stays valid until the next call that changes the capture.
CUresult Info(CUstream handle, const InfoOut& out) {
  if (out.status == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) {
    if (stream.kind == Stream::Kind::kLegacy && LegacyWorkRefused(*stream.context)) {
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    const Capture* const capture = stream.capture.get();
    *out.status = capture == nullptr     ? CU_STREAM_CAPTURE_STATUS_NONE
                  : capture->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                         : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (*out.status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_SUCCESS;
    if (out.id != nullptr) *out.id = capture->id;
    if (out.graph != nullptr) *out.graph = reinterpret_cast<CUgraph>(capture->graph);
    if (out.dependencies != nullptr) *out.dependencies = reinterpret_cast<const CUgraphNode*>(stream.tail.data());
    if (out.edges != nullptr) *out.edges = nullptr;
    if (out.count != nullptr) *out.count = stream.tail.size();
    return CUDA_SUCCESS;
  });
}

CUresult Update(CUstream handle, CUgraphNode* nodes, size_t count, unsigned flags) {
  if (nodes == nullptr && count != 0) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) {
    if (stream.capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    std::vector<Node*> tail = flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES ? std::vector<Node*>{} : stream.tail;
    for (size_t i = 0; i < count; ++i) {
      Node* const node = driver().nodes.Find(nodes[i]);
      if (node == nullptr || node->graph != stream.capture->graph) return CUDA_ERROR_INVALID_VALUE;
      if (std::find(tail.begin(), tail.end(), node) == tail.end()) tail.push_back(node);
    }
    return stream.tail = std::move(tail), CUDA_SUCCESS;
  });
}

bool Known(CUstreamCaptureMode mode) {
  return mode >= CU_STREAM_CAPTURE_MODE_GLOBAL && mode <= CU_STREAM_CAPTURE_MODE_RELAXED;
}

}  // namespace

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  if (!Known(mode)) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return Begin(stream, mode, nullptr); });
}

CUresult cuStreamBeginCapture(CUstream handle) {
  return fake_cuda::cuStreamBeginCapture_v2(handle, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

CUresult cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph_handle, const CUgraphNode* dependencies,
                                     const CUgraphEdgeData*, size_t count, CUstreamCaptureMode mode) {
  Graph* const graph = driver().graphs.Find(graph_handle);
  if (graph == nullptr || !Known(mode)) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = WithStream(handle, [&](Stream& stream) { return Begin(stream, mode, graph); });
  if (result != CUDA_SUCCESS) return result;
  return Update(handle, const_cast<CUgraphNode*>(dependencies), count, CU_STREAM_SET_CAPTURE_DEPENDENCIES);
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithStream(handle, [&](Stream& stream) { return End(stream, graph); });
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) { return Info(handle, {status, nullptr}); }

CUresult cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id) {
  return Info(handle, {status, id});
}

CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                                   const CUgraphNode** dependencies, size_t* count) {
  return Info(handle, {status, id, graph, dependencies, nullptr, count});
}

CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                                   const CUgraphNode** dependencies, const CUgraphEdgeData** edges, size_t* count) {
  return Info(handle, {status, id, graph, dependencies, edges, count});
}

CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode* nodes, size_t count, unsigned flags) {
  return Update(handle, nodes, count, flags);
}

CUresult cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode* nodes, const CUgraphEdgeData*, size_t count,
                                              unsigned flags) {
  return Update(handle, nodes, count, flags);
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  if (mode == nullptr || !Known(*mode)) return CUDA_ERROR_INVALID_VALUE;
  *mode = ExchangeThreadMode(*mode);
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
