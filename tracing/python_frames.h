// tracing/python_frames.h - the interpreter's own frames, read in place.
//
// From Python 3.11 on, a frame object is made the first time somebody asks for a frame: that costs an allocation which may start
// the garbage collector in the middle of an allocation of ours. The interpreter's records cost neither. Their layout is that of a
// minor version: 3.13 and 3.14 say it themselves (what they offer to debuggers), 3.11 and 3.12 are known. Whoever uses a layout
// first checks it against the API (stack_python.cc); where it is not known or not confirmed, the API is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "stack_python.h"

namespace gpuledger::python {

struct FrameLayout {
  size_t of_thread;                           // in the thread's state: its current frame ...
  std::optional<size_t> of_c_frame;           // ... or a record that has it here
  size_t previous, code, instruction, owner;  // in a frame
  std::optional<size_t> is_entry;             // 3.11: in a frame that the native interpreter was entered with
  size_t first_instruction, type;             // in a code object
};

// Of the Python with `version` (Py_Version), whose runtime begins at `runtime`.
std::optional<FrameLayout> LayoutOf(unsigned long version, const void* runtime);

// Up to `room` frames; nothing if `read` fails anywhere. `read(address, to, size)` says whether it could.
template <class Read>
std::optional<size_t> WalkFrames(const FrameLayout& layout, const void* thread, const void* code_type, Frame* frames, size_t room, Read read) {
  const auto word = [&](uintptr_t at, uintptr_t& to) { return read(at, &to, sizeof to); };
  constexpr uint8_t kFirstOfInterpreter = 3;  // owners from this on are no function's: the interpreter was entered here
  uintptr_t frame = 0;
  if (!word(reinterpret_cast<uintptr_t>(thread) + layout.of_thread, frame)) return std::nullopt;
  if (layout.of_c_frame && (frame == 0 || !word(frame + *layout.of_c_frame, frame))) return std::nullopt;
  size_t count = 0;
  while (frame != 0 && count < room) {
    uint8_t owner = 0, entry = 0;
    uintptr_t code = 0, instruction = 0, type = 0;
    if (!read(frame + layout.owner, &owner, 1)) return std::nullopt;
    if (owner >= kFirstOfInterpreter) {
      if (count > 0) frames[count - 1].entry = true;
    } else {
      if (!word(frame + layout.code, code) || !word(frame + layout.instruction, instruction)) return std::nullopt;
      code &= ~uintptr_t{7};  // 3.14 keeps marks in the low bits
      if (code == 0 || !word(code + layout.type, type)) return std::nullopt;
      if (layout.is_entry && !read(frame + *layout.is_entry, &entry, 1)) return std::nullopt;
      if (type == reinterpret_cast<uintptr_t>(code_type)) {
        frames[count++] = {reinterpret_cast<void*>(code), static_cast<int32_t>(instruction - code - layout.first_instruction), entry != 0};
      }
    }
    if (!word(frame + layout.previous, frame)) return std::nullopt;
  }
  return count;
}

}  // namespace gpuledger::python
