// tracing/stack_python.h - the Python stack of the calling thread, in whatever Python the process has, without linking to one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gpuledger::python {

// A code object and where in it: an instruction's offset in bytes (or, by the API of Python 3.10, a line).
struct Frame {
  void* code;
  int32_t at;
  uint32_t names;  // of its code object's names: another one in the same place has others
  bool entry;      // the native interpreter was entered with it; where Python does not say (3.11 and later, by the API): false
};

// Before the first stack, from a thread that has the GIL if there is one: until a thread that has it took one, what is known of the
// interpreter is not confirmed, and threads without the GIL get no Python frames.
void Prepare() noexcept;

// Up to `room` frames of this thread, innermost first; how many. 0 if there is no Python, or this is no thread of Python's. The GIL
// may be held or not, and is never taken. Nothing the program can see changes. (A daemon thread that is in native code when the
// interpreter ends is seen off by Py_IsInitialized; for the nanoseconds of a walk that is under way at that instant, nothing does.)
size_t TakeFrames(Frame* frames, size_t room) noexcept;

// What a frame is called, and its line. Requires: it came from TakeFrames of this thread a moment ago. Where the GIL is held, a
// reference to the code object is kept from now on.
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
