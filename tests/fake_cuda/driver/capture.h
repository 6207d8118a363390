// Stream capture: who captures what into which graph, and which calls that forbids.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "driver.h"

namespace fake_cuda {

struct Capture {
  uint64_t id;
  CUstreamCaptureMode mode;
  Graph* graph;
  Stream* origin;
  std::thread::id thread;
  bool invalidated = false;
  bool owns_graph = true;
  std::vector<Stream*> streams;  // all that take part
};

// Refuses a call that is unsafe while some stream is captured, by the modes of the captures and of this thread, and
// invalidates those captures.
CUresult RefuseInCapture();

// Refuses work on the legacy stream of a context while one of its blocking streams is captured, and invalidates that
// capture; a question about the stream is refused alike and does no harm.
CUresult RefuseLegacyWork(Context& context);
bool LegacyWorkRefused(const Context& context);

// Refuses a synchronisation of what is captured.
CUresult RefuseWaiting(Stream& stream);
CUresult RefuseWaiting(Context& context);

// How this thread wants to be treated; gives the mode before.
CUstreamCaptureMode ExchangeThreadMode(CUstreamCaptureMode mode);

// Lets a stream take part in a capture.
void Join(const std::shared_ptr<Capture>& capture, Stream& stream);

// Ends a capture without a result, as its stream or context goes away.
void Abandon(Capture& capture);

}  // namespace fake_cuda
