// One row of a table of symbols, as symbols.py generates it. See README.md.
#pragma once

namespace fake_cuda {

enum SymbolFlags : unsigned {
  kEarly = 1,            // may be called before the library is initialised
  kUnsafeInCapture = 2,  // refused while a stream is captured in a mode that says so
  kPerThread = 4,        // _ptds or _ptsz: the default stream is the thread's own
  kImplemented = 8,
  kThreadOnly = 16,      // asks for what only the calling thread changes: needs no mutex
};

struct Symbol {
  const char* name;    // as exported: cuMemcpyHtoD_v2_ptds
  const char* base;    // as asked for: cuMemcpyHtoD
  const char* family;  // device, context, memory, virtual, pool, ...
  int since;           // first CUDA version with this form of it: 7000
  unsigned flags;
  void* address;

  bool is(SymbolFlags flag) const { return (flags & flag) != 0; }
};

}  // namespace fake_cuda
