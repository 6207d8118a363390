#include "python_frames.h"

namespace gpuledger::python {
namespace {

// What 3.13 and later say of themselves: words, of which these are used. Their places differ between minor versions.
struct Places {
  size_t current_frame, frame, code;  // indices of: the thread state's field; a frame's fields; a code object's
};

std::optional<FrameLayout> AsToldBy(const void* runtime, unsigned long version, Places places) {
  if (runtime == nullptr || std::memcmp(runtime, "xdebugpy", 8) != 0) return std::nullopt;
  uint64_t words[64];
  std::memcpy(words, runtime, sizeof words);
  // Without a global lock, instructions lie elsewhere for each thread.
  if (words[1] != version || words[2] != 0) return std::nullopt;
  const uint64_t* const frame = words + places.frame;  // size, previous, executable, instruction, locals, owner
  const uint64_t* const code = words + places.code;    // size, file, name, qualified name, lines, first line, ... first instruction
  return FrameLayout{.of_thread = words[places.current_frame], .of_c_frame = {}, .previous = frame[1], .code = frame[2],
                     .instruction = frame[3], .owner = frame[5], .is_entry = {}, .first_instruction = code[9], .type = 8,
                     .file = code[1], .name = code[2], .qualified_name = code[3], .first_line = code[5], .ascii_text = 40, .wide_text = 56};
}

void AppendUtf8(std::string& text, uint32_t c) {
  if (c >= 0xd800 && c < 0xe000) c = '?';  // half a character: a file name that is no UTF-8
  if (c < 0x80) {
    text += static_cast<char>(c);
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  text += static_cast<char>((0xff80 >> more & 0xff) | c >> 6 * more);
  for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | (c >> 6 * i & 0x3f));
}

template <class T>
T At(const void* object, size_t offset) {
  T value;
  std::memcpy(&value, static_cast<const char*>(object) + offset, sizeof value);
  return value;
}

}  // namespace

std::optional<FrameLayout> LayoutOf(unsigned long version, const void* runtime) {
  static_assert(sizeof(void*) == 8);
  switch (version >> 16) {
    case 0x030a:
      return FrameLayout{.of_thread = 24, .of_c_frame = {}, .previous = 24, .code = 32, .instruction = 96, .owner = {},
                         .is_entry = {}, .first_instruction = 0, .type = 8, .file = 104, .name = 112, .qualified_name = {},
                         .first_line = 40, .ascii_text = 48, .wide_text = 72};
    case 0x030b:
      return FrameLayout{.of_thread = 56, .of_c_frame = 8, .previous = 48, .code = 32, .instruction = 56, .owner = 69,
                         .is_entry = 68, .first_instruction = 184, .type = 8, .file = 112, .name = 120, .qualified_name = 128,
                         .first_line = 72, .ascii_text = 48, .wide_text = 72};
    case 0x030c:
      return FrameLayout{.of_thread = 56, .of_c_frame = 0, .previous = 8, .code = 0, .instruction = 56, .owner = 70,
                         .is_entry = {}, .first_instruction = 192, .type = 8, .file = 112, .name = 120, .qualified_name = 128,
                         .first_line = 68, .ascii_text = 40, .wide_text = 56};
    case 0x030d: return AsToldBy(runtime, version, {23, 28, 34});
    case 0x030e: return AsToldBy(runtime, version, {26, 31, 39});
    default: return std::nullopt;
  }
}

std::string TextOf(const FrameLayout& layout, const void* str) {
  const auto length = At<uint64_t>(str, 16);
  const auto state = At<uint32_t>(str, 32);
  const uint32_t kind = state >> 2 & 7;  // bytes a character
  const bool compact = (state >> 5 & 1) != 0, ascii = (state >> 6 & 1) != 0;
  if (!compact || length > 4096) return "";
  std::string text;
  const size_t begin = ascii ? layout.ascii_text : layout.wide_text;
  for (uint64_t i = 0; i < length; ++i) {
    const size_t at = begin + i * kind;
    if (kind == 1) AppendUtf8(text, At<uint8_t>(str, at));
    else if (kind == 2) AppendUtf8(text, At<uint16_t>(str, at));
    else if (kind == 4) AppendUtf8(text, At<uint32_t>(str, at));
  }
  return text;
}

Name NamesIn(const FrameLayout& layout, const void* code) {
  Name name;
  name.function = TextOf(layout, At<const void*>(code, layout.qualified_name.value_or(layout.name)));
  name.file = TextOf(layout, At<const void*>(code, layout.file));
  return name;
}

}  // namespace gpuledger::python
