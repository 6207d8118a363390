#include "python_frames.h"

namespace gpuledger::python {
namespace {

// What 3.13 and later say of themselves: words, of which these are used. Their places differ between minor versions.
struct Places {
  size_t current_frame, frame, code;  // indices of: the thread state's field; the frame's fields; the code object's first instruction
};

std::optional<FrameLayout> AsToldBy(const void* runtime, unsigned long version, Places places) {
  if (runtime == nullptr || std::memcmp(runtime, "xdebugpy", 8) != 0) return std::nullopt;
  uint64_t words[64];
  std::memcpy(words, runtime, sizeof words);
  // Without a global lock, instructions lie elsewhere for each thread.
  if (words[1] != version || words[2] != 0) return std::nullopt;
  const uint64_t* const frame = words + places.frame;  // size, previous, executable, instruction, locals, owner
  return FrameLayout{.of_thread = words[places.current_frame], .of_c_frame = {}, .previous = frame[1], .code = frame[2],
                     .instruction = frame[3], .owner = frame[5], .is_entry = {}, .first_instruction = words[places.code], .type = 8};
}

}  // namespace

std::optional<FrameLayout> LayoutOf(unsigned long version, const void* runtime) {
  static_assert(sizeof(void*) == 8);
  switch (version >> 16) {
    case 0x030b:
      return FrameLayout{.of_thread = 56, .of_c_frame = 8, .previous = 48, .code = 32, .instruction = 56, .owner = 69,
                         .is_entry = 68, .first_instruction = 184, .type = 8};
    case 0x030c:
      return FrameLayout{.of_thread = 56, .of_c_frame = 0, .previous = 8, .code = 0, .instruction = 56, .owner = 70,
                         .is_entry = {}, .first_instruction = 192, .type = 8};
    case 0x030d: return AsToldBy(runtime, version, {23, 28, 43});
    case 0x030e: return AsToldBy(runtime, version, {26, 31, 48});
    default: return std::nullopt;
  }
}

}  // namespace gpuledger::python
