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
  bool entry;  // the native interpreter was entered with it; where Python does not say (3.11 and later, by the API): false
};

// Up to `room` frames of this thread, innermost first; how many. Python's lock is never taken: a thread that does not hold it
// has its frames read in place, once that was found to be right on a thread that did; 0 before, and without a Python. Nothing
// the program can see changes.
size_t TakeFrames(Frame* frames, size_t room) noexcept;

// What a frame is called, and its line. Requires: it came from TakeFrames of this thread a moment ago.
struct Name {
  std::string function, file;
  uint32_t line = 0;
};
Name NameOf(Frame frame);

// The interpreter's loop, to tell its native frames and those of its module. Empty if there is no Python.
struct Interpreter {
  uintptr_t begin = 0, end = 0;
};
Interpreter TheInterpreter() noexcept;

// Around fork: names are whole in the child.
void LockNamesForFork() noexcept;
void UnlockNamesAfterFork() noexcept;

}  // namespace gpuledger::python
