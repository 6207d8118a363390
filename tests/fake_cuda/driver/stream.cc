#include "stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "capture.h"
#include "entry.h"
#include "misuse.h"
#include "pool.h"

namespace fake_cuda {
namespace {

Stream* NewDefault(Context& context, Stream::Kind kind) {
  auto stream = std::make_unique<Stream>();
  stream->id = driver().next_id++;
  stream->context = &context;
  stream->kind = kind;
  return driver().streams.Add(std::move(stream));
}

Stream& Default(Context& context, bool per_thread) {
  Stream*& slot = per_thread ? context.per_thread[std::this_thread::get_id()] : context.legacy;
  if (slot == nullptr) slot = NewDefault(context, per_thread ? Stream::Kind::kPerThread : Stream::Kind::kLegacy);
  return *slot;
}

}  // namespace

bool Stream::done() const {
  const auto finished = [](const std::shared_ptr<Mark>& mark) { return mark->Done(); };
  return (last == nullptr || last->Done()) && std::all_of(waits.begin(), waits.end(), finished);
}

CUresult FindStream(CUstream handle, Stream*& stream) {
  CUresult result = CUDA_SUCCESS;
  const bool own = handle == CU_STREAM_PER_THREAD || (handle == nullptr && Call::current()->symbol().is(kPerThread));
  if (handle == nullptr || handle == CU_STREAM_LEGACY || own) {
    Context* const context = CurrentContext(result);
    if (context == nullptr) return result;
    stream = &Default(*context, own);
    return CUDA_SUCCESS;
  }
  stream = driver().streams.Find(handle);
  if (stream != nullptr) return CUDA_SUCCESS;
  if (!driver().streams.Died(handle)) return CUDA_ERROR_INVALID_HANDLE;
  return Misuse(CUDA_ERROR_INVALID_HANDLE, "the stream was destroyed before, or its context was");
}

CUresult FindEvent(CUevent handle, Event*& event) {
  event = driver().events.Find(handle);
  if (event != nullptr) return CUDA_SUCCESS;
  if (!driver().events.Died(handle)) return CUDA_ERROR_INVALID_HANDLE;
  return Misuse(CUDA_ERROR_INVALID_HANDLE, "the event was destroyed before, or its context was");
}

CUresult Submit(CUstream handle, Node node) {
  Stream* stream = nullptr;
  const CUresult result = FindStream(handle, stream);
  return result != CUDA_SUCCESS ? result : Submit(*stream, std::move(node));
}

CUresult Submit(Stream& stream, Node node, Node** captured) {
  if (stream.kind == Stream::Kind::kLegacy) {
    if (const CUresult refused = RefuseLegacyWork(*stream.context); refused != CUDA_SUCCESS) return refused;
  }
  if (stream.capture == nullptr) {
    if (node.work) {
      const Unlocked unlocked;  // it may be the program's own function
      node.work();
    }
    return CUDA_SUCCESS;
  }
  if (stream.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  node.dependencies = stream.tail;
  Node* const added = AddNode(*stream.capture->graph, std::move(node));
  stream.tail = {added};
  if (captured != nullptr) *captured = added;
  return CUDA_SUCCESS;
}

CUresult WaitFor(std::shared_ptr<Mark> mark) {
  while (!driver().held.Finish(mark)) {
    const Unlocked unlocked;  // another process finishes it
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return CUDA_SUCCESS;
}

CUresult Synchronize(Stream& stream) {
  Device& device = *stream.context->device;
  const Marks waits = std::move(stream.waits);
  stream.waits.clear();
  const std::shared_ptr<Mark> last = std::move(stream.last);
  stream.last = nullptr;
  for (const std::shared_ptr<Mark>& mark : waits) WaitFor(mark);
  if (last != nullptr) WaitFor(last);  // from here on the stream may be gone
  TrimPools(device);
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
