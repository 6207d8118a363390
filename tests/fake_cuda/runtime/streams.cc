// What is ordered by a stream: its memory, queries, waits, callbacks, capture, events, graph launches; compiled twice
// (stream_calls.h).
#include "stream_calls.h"

using namespace fake_cudart;

static_assert(sizeof(cudaGraphEdgeData) == sizeof(CUgraphEdgeData));

FAKE_CUDART_EXPORT cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    if (pointer == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *pointer = nullptr;
    return bytes == 0 ? CUDA_SUCCESS : calls.MemAllocAsync(reinterpret_cast<CUdeviceptr*>(pointer), bytes, stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t bytes, cudaMemPool_t pool,
                                                       cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    if (pointer == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *pointer = nullptr;
    return bytes == 0 ? CUDA_SUCCESS
                      : calls.MemAllocFromPoolAsync(reinterpret_cast<CUdeviceptr*>(pointer), bytes, pool, stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    return pointer == nullptr ? CUDA_SUCCESS : calls.MemFreeAsync(reinterpret_cast<CUdeviceptr>(pointer), stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPrefetchAsync(const void* pointer, size_t bytes, cudaMemLocation location,
                                                    unsigned flags, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.MemPrefetchAsync(reinterpret_cast<CUdeviceptr>(pointer), bytes,
                                  reinterpret_cast<const CUmemLocation&>(location), flags, stream);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamQuery(stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamSynchronize(stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamWaitEvent(stream, event, flags); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamGetPriority(stream, priority); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamGetFlags(stream, flags); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamGetId(stream, id); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamGetDevice(stream, device); });
}

// The two callback types differ in the name of an enumeration whose numbers are the same.
FAKE_CUDART_EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data,
                                                     unsigned flags) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.StreamAddCallback(stream, reinterpret_cast<CUstreamCallback>(callback), data, flags);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return WithStreams([&](const StreamCalls& calls) { return calls.LaunchHostFunc(stream, function, data); });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) { return calls.EventRecord(event, stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return WithStreams([&](const StreamCalls& calls) { return calls.EventRecordWithFlags(event, stream, flags); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.StreamBeginCapture(stream, static_cast<CUstreamCaptureMode>(mode));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return WithStreams([&](const StreamCalls& calls) { return calls.StreamEndCapture(stream, graph); });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.StreamIsCapturing(stream, reinterpret_cast<CUstreamCaptureStatus*>(status));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                                        unsigned long long* id, cudaGraph_t* graph,
                                                        const cudaGraphNode_t** dependencies,
                                                        const cudaGraphEdgeData** edges, size_t* count) {
  return WithStreams([&](const StreamCalls& calls) {
    cuuint64_t capture = 0;
    const CUresult result =
        calls.StreamGetCaptureInfo(stream, reinterpret_cast<CUstreamCaptureStatus*>(status), &capture, graph,
                                   dependencies, reinterpret_cast<const CUgraphEdgeData**>(edges), count);
    if (id != nullptr) *id = capture;
    return result;
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream, cudaGraphNode_t* dependencies,
                                                                   const cudaGraphEdgeData* edges, size_t count,
                                                                   unsigned flags) {
  return WithStreams([&](const StreamCalls& calls) {
    return calls.StreamUpdateCaptureDependencies(stream, dependencies, reinterpret_cast<const CUgraphEdgeData*>(edges),
                                                 count, flags);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) { return calls.GraphLaunch(graph, stream); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t stream) {
  return WithStreams([&](const StreamCalls& calls) { return calls.GraphUpload(graph, stream); });
}
