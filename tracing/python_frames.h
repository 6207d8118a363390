// tracing/python_frames.h - the interpreter's own frames and code objects, read in place.
//
// The API will not do, for two reasons. PyTorch gives the GIL up before it allocates, and without it no function of the API may be
// called; but a thread's frames stay as they are while it is in native code, and what they hold lives, so that they can be read.
// And from Python 3.11 on, asking for a frame makes a frame object: an allocation that may start the garbage collector.
//
// The layout is that of a minor version: 3.13 and 3.14 say it themselves (what they offer to debuggers), older ones are known.
// Before it is used it is checked against the API (stack_python.cc); where it is not known or not confirmed, the API is used, by
// threads that have the GIL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "stack_python.h"

namespace gpuledger::python {

struct FrameLayout {
  size_t of_thread;                  // in the thread's state: its current frame ...
  std::optional<size_t> of_c_frame;  // ... or a record that has it here
  size_t previous, code, instruction;
  std::optional<size_t> owner, is_entry;  // without an owner (3.10), each frame entered the interpreter, and instructions are counted
  size_t first_instruction, type, file, name;
  std::optional<size_t> qualified_name;
  size_t first_line;                      // in a code object, as those before
  size_t ascii_text, wide_text;           // where a str has its characters
};

// Of the Python with `version` (as in Py_Version), whose runtime begins at `runtime`.
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
    uint8_t owner = 0, entry = layout.owner ? 0 : 1;
    if (layout.owner && !read(frame + *layout.owner, &owner, 1)) return std::nullopt;
    if (owner >= kFirstOfInterpreter) {
      if (count > 0) frames[count - 1].entry = true;
    } else {
      uintptr_t code = 0, type = 0, instruction = 0, file = 0, name = 0;
      uint32_t line = 0;
      int32_t at = 0;
      if (!word(frame + layout.code, code)) return std::nullopt;
      code &= ~uintptr_t{7};  // 3.14 keeps marks in the low bits
      if (code == 0 || !word(code + layout.type, type)) return std::nullopt;
      if (type == reinterpret_cast<uintptr_t>(code_type)) {
        if (layout.owner) {
          if (!word(frame + layout.instruction, instruction)) return std::nullopt;
          at = static_cast<int32_t>(instruction - code - layout.first_instruction);
        } else {
          if (!read(frame + layout.instruction, &at, sizeof at)) return std::nullopt;
          at *= 2;
        }
        if (layout.is_entry && !read(frame + *layout.is_entry, &entry, 1)) return std::nullopt;
        if (!word(code + layout.file, file) || !word(code + layout.name, name) || !read(code + layout.first_line, &line, sizeof line)) return std::nullopt;
        frames[count++] = {reinterpret_cast<void*>(code), at, static_cast<uint32_t>(file >> 4) ^ static_cast<uint32_t>(name >> 4) * 31 ^ line * 0x9e3779b9, entry != 0};
      }
    }
    if (!word(frame + layout.previous, frame)) return std::nullopt;
  }
  return count;
}

// The text of a str, "" for one of an unusual kind. Needs no lock: what is read of it never changes.
std::string TextOf(const FrameLayout& layout, const void* str);
// Of a code object: what function and file are called.
Name NamesIn(const FrameLayout& layout, const void* code);

}  // namespace gpuledger::python
