// Streams and events. Work is done when it is submitted, or becomes a node of the graph that the stream is captured
// into.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "driver.h"
#include "graph.h"

namespace fake_cuda {

struct Stream {
  enum class Kind { kLegacy, kPerThread, kCreated };

  uint64_t id = 0;
  Context* context = nullptr;
  Kind kind = Kind::kCreated;
  unsigned flags = 0;
  int priority = 0;
  std::shared_ptr<Capture> capture;  // null: not captured
  std::vector<Node*> tail;           // while captured: what the next node depends on
  std::shared_ptr<Mark> last;        // the newest mark of held work, if any
  Marks waits;                       // held work of other streams that the next work comes after
  std::map<CUstreamAttrID, CUstreamAttrValue> attributes;

  bool blocking() const { return kind != Kind::kLegacy && (flags & CU_STREAM_NON_BLOCKING) == 0; }
  bool done() const;
};

struct Event {
  Context* context = nullptr;
  unsigned flags = 0;
  bool recorded = false;
  uint64_t time_ns = 0;
  std::shared_ptr<Mark> mark;            // null: finished
  std::shared_ptr<MappedTicket> ticket;  // of an event shared with other processes
  bool opened = false;                   // by cuIpcOpenEventHandle
  std::shared_ptr<Capture> capture;      // recorded while its stream was captured
  std::vector<Node*> tail;               // what came before it there
};

// The stream that `handle` means in this call: 0 is the legacy default stream, or the thread's own in a _ptsz call.
CUresult FindStream(CUstream handle, Stream*& stream);
CUresult FindEvent(CUevent handle, Event*& event);

// Runs `node.work` now, or captures the node. The work of host functions is done outside the lock.
CUresult Submit(CUstream stream, Node node);
CUresult Submit(Stream& stream, Node node, Node** captured = nullptr);

// Waits until the stream has done its work; trims the pools as a synchronisation does.
CUresult Synchronize(Stream& stream);
CUresult WaitFor(std::shared_ptr<Mark> mark);

}  // namespace fake_cuda
