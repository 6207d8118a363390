// tracing/stack_python.h - the Python stack of the calling thread, in whatever Python the process has, without linking to one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gpuledger::python {

// A code object, for which a reference is kept once it was named, and where in it: an instruction, or a line before 3.11.
struct Frame {
  void* code;
  int32_t at;
};

// Up to `room` frames of this thread, innermost first; how many. 0 if there is no Python, or this thread does not hold its
// lock, which is never taken. Nothing the program can see changes: frames it gets are given back at once.
size_t TakeFrames(Frame* frames, size_t room) noexcept;

// What a frame is called, and its line. Requires: it came from TakeFrames of this thread a moment ago.
struct Name {
  std::string function, file;
  uint32_t line = 0;
};
Name NameOf(Frame frame);

// Where the interpreter's own code lies, to tell its native frames; 0 if there is no Python.
uintptr_t InterpreterAddress() noexcept;

}  // namespace gpuledger::python
