#include "unwind_rule.h"

#include <link.h>

#include <cstddef>
#include <cstring>

namespace gpuledger {
namespace {

#if defined(__x86_64__)
constexpr uint64_t kFramePointer = 6, kStackPointer = 7, kReturnAddress = 16;  // DWARF's numbers

// Reads what the tables are written in. They are the loaded module's own and were made by a linker: trusted as code is.
class Cursor {
 public:
  explicit Cursor(const uint8_t* at) : at_(at) {}
  template <class T>
  T Take() {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  uint64_t Unsigned() {
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const auto byte = Take<uint8_t>();
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
  }
  int64_t Signed() {
    uint64_t value = 0;
    for (unsigned shift = 0;;) {
      const auto byte = Take<uint8_t>();
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      shift += 7;
      if ((byte & 0x80) != 0) continue;
      if ((byte & 0x40) != 0 && shift < 64) value |= ~uint64_t{0} << shift;
      return static_cast<int64_t>(value);
    }
  }
  // False for an encoding that code in memory does not have.
  bool Pointer(uint8_t encoding, uint64_t* value) {
    const auto here = reinterpret_cast<uint64_t>(at_);
    switch (encoding & 0x0f) {
      case 0x00: case 0x04: case 0x0c: *value = Take<uint64_t>(); break;
      case 0x01: *value = Unsigned(); break;
      case 0x02: *value = Take<uint16_t>(); break;
      case 0x03: *value = Take<uint32_t>(); break;
      case 0x09: *value = static_cast<uint64_t>(Signed()); break;
      case 0x0a: *value = static_cast<uint64_t>(int64_t{Take<int16_t>()}); break;
      case 0x0b: *value = static_cast<uint64_t>(int64_t{Take<int32_t>()}); break;
      default: return false;
    }
    if ((encoding & 0x70) == 0x10) *value += here;
    return (encoding & 0x70) <= 0x10;
  }
  void Skip(uint64_t bytes) { at_ += bytes; }
  [[nodiscard]] const uint8_t* at() const { return at_; }

 private:
  const uint8_t* at_;
};

struct Length {
  const uint8_t* end;
  explicit Length(Cursor& cursor) {
    uint64_t length = cursor.Take<uint32_t>();
    if (length == 0xffffffff) length = cursor.Take<uint64_t>();
    end = cursor.at() + length;
  }
};

// What all functions of a compilation unit share.
struct Common {
  uint64_t code_unit = 1;
  int64_t data_unit = 1;
  uint8_t pointers = 0;
  bool augmented = false, signal = false, known = false;
  const uint8_t *program = nullptr, *end = nullptr;

  explicit Common(const uint8_t* at) {
    Cursor c(at);
    end = Length(c).end;
    c.Skip(4);
    const auto version = c.Take<uint8_t>();
    const char* letters = reinterpret_cast<const char*>(c.at());
    c.Skip(std::strlen(letters) + 1);
    if (version != 1 && version != 3) return;
    code_unit = c.Unsigned();
    data_unit = c.Signed();
    if ((version == 1 ? c.Take<uint8_t>() : c.Unsigned()) != kReturnAddress) return;
    program = c.at();
    known = *letters == '\0';
    if (*letters != 'z') return;
    const uint64_t size = c.Unsigned();
    program = c.at() + size;
    augmented = known = true;
    for (uint64_t personality; *++letters != '\0' && known;) {
      if (*letters == 'R') pointers = c.Take<uint8_t>();
      else if (*letters == 'L') c.Skip(1);
      else if (*letters == 'P') known = c.Pointer(c.Take<uint8_t>() & 0x7f, &personality);
      else if (*letters == 'S') signal = true;
      else known = false;
    }
  }
};

struct Registers {
  uint64_t cfa_register = kStackPointer;
  int64_t cfa_offset = 8, saved_offset = 0;
  UnwindRule::Saved saved = UnwindRule::Saved::kKept;
  bool behind = false, outermost = false, known = true;
};

class Program {
 public:
  Program(const Common& common, uint64_t begin, uint64_t address) : common_(common), at_(begin), address_(address) {}

  void Run(const uint8_t* program, const uint8_t* end) {
    for (Cursor c(program); c.at() < end && now_.known && at_ <= address_;) Step(c);
  }
  void BeginFunction() { first_ = now_; }
  [[nodiscard]] const Registers& registers() const { return now_; }

 private:
  void Step(Cursor& c) {
    const auto op = c.Take<uint8_t>();
    const uint64_t low = op & 0x3f;
    switch (op & 0xc0) {
      case 0x40: return Advance(low);
      case 0x80: return Save(low, static_cast<int64_t>(c.Unsigned()) * common_.data_unit);
      case 0xc0: return Restore(low);
      default: break;
    }
    switch (op) {
      case 0x00: return;
      case 0x01: now_.known = c.Pointer(common_.pointers, &at_); return;
      case 0x02: return Advance(c.Take<uint8_t>());
      case 0x03: return Advance(c.Take<uint16_t>());
      case 0x04: return Advance(c.Take<uint32_t>());
      case 0x05: { const uint64_t which = c.Unsigned(); return Save(which, static_cast<int64_t>(c.Unsigned()) * common_.data_unit); }
      case 0x06: return Restore(c.Unsigned());
      case 0x07: if (c.Unsigned() == kReturnAddress) now_.outermost = true; return;
      case 0x08: if (c.Unsigned() == kFramePointer) now_.saved = UnwindRule::Saved::kKept; return;
      case 0x09: { const uint64_t which = c.Unsigned(); c.Unsigned(); return Other(which); }
      case 0x0a: if (kept_ == kMostKept) now_.known = false; else stack_[kept_++] = now_; return;
      case 0x0b: if (kept_ == 0) now_.known = false; else now_ = stack_[--kept_]; return;
      case 0x0c: now_.cfa_register = c.Unsigned(); now_.cfa_offset = static_cast<int64_t>(c.Unsigned()); now_.behind = false; return;
      case 0x0d: now_.cfa_register = c.Unsigned(); now_.behind = false; return;
      case 0x0e: now_.cfa_offset = static_cast<int64_t>(c.Unsigned()); return;
      case 0x0f: return CfaExpression(c);
      case 0x10: return SavedExpression(c);
      case 0x11: { const uint64_t which = c.Unsigned(); return Save(which, c.Signed() * common_.data_unit); }
      case 0x12: now_.cfa_register = c.Unsigned(); now_.cfa_offset = c.Signed() * common_.data_unit; now_.behind = false; return;
      case 0x13: now_.cfa_offset = c.Signed() * common_.data_unit; return;
      case 0x14: { const uint64_t which = c.Unsigned(); c.Unsigned(); return Other(which); }
      case 0x15: { const uint64_t which = c.Unsigned(); c.Signed(); return Other(which); }
      case 0x16: { const uint64_t which = c.Unsigned(); c.Skip(c.Unsigned()); return Other(which); }
      case 0x2e: c.Unsigned(); return;
      case 0x2f: { const uint64_t which = c.Unsigned(); return Save(which, -static_cast<int64_t>(c.Unsigned()) * common_.data_unit); }
      default: now_.known = false;
    }
  }
  void Advance(uint64_t units) { at_ += units * common_.code_unit; }
  void Save(uint64_t which, int64_t offset) {
    if (which == kFramePointer) now_.saved = UnwindRule::Saved::kAtCfa, now_.saved_offset = offset;
    if (which == kReturnAddress) now_.outermost = false, now_.known = offset == -8;
  }
  void Restore(uint64_t which) {
    if (which == kFramePointer) now_.saved = first_.saved, now_.saved_offset = first_.saved_offset;
    if (which == kReturnAddress) now_.outermost = first_.outermost;
  }
  void Other(uint64_t which) {
    if (which == kFramePointer || which == kReturnAddress) now_.known = false;
  }
  // "*(frame pointer + n)": what GCC writes for functions that align their stack.
  void CfaExpression(Cursor& c) {
    const uint64_t size = c.Unsigned();
    const uint8_t* const end = c.at() + size;
    now_.known = size >= 3 && c.Take<uint8_t>() == 0x76 && (now_.cfa_offset = c.Signed(), end - c.at() == 1) && c.Take<uint8_t>() == 0x06;
    now_.cfa_register = kFramePointer;
    now_.behind = true;
    c = Cursor(end);
  }
  void SavedExpression(Cursor& c) {
    const uint64_t which = c.Unsigned(), size = c.Unsigned();
    const uint8_t* const end = c.at() + size;
    if (which == kReturnAddress) now_.known = false;
    if (which == kFramePointer) {
      now_.known = size >= 2 && c.Take<uint8_t>() == 0x76 && (now_.saved_offset = c.Signed(), c.at() == end);
      now_.saved = UnwindRule::Saved::kAtFramePointer;
    }
    c = Cursor(end);
  }

  static constexpr int kMostKept = 8;
  const Common& common_;
  uint64_t at_;
  const uint64_t address_;
  Registers now_, first_, stack_[kMostKept];
  int kept_ = 0;
};

UnwindRule RuleOf(const Registers& r) {
  UnwindRule rule;
  if (!r.known) return rule;
  rule.cfa_offset = static_cast<int32_t>(r.cfa_offset);
  rule.saved = r.saved;
  rule.saved_offset = static_cast<int32_t>(r.saved_offset);
  if (r.outermost) rule.cfa = UnwindRule::Cfa::kEnd;
  else if (r.behind) rule.cfa = UnwindRule::Cfa::kBehindFramePointer;
  else if (r.cfa_register == kStackPointer) rule.cfa = UnwindRule::Cfa::kStackPointer;
  else if (r.cfa_register == kFramePointer) rule.cfa = UnwindRule::Cfa::kFramePointer;
  return rule;
}

UnwindRule RuleOfFunction(const uint8_t* description, uint64_t address) {
  Cursor c(description);
  const Length length(c);
  const uint8_t* const back = c.at();
  const Common common(back - c.Take<int32_t>());
  uint64_t begin = 0, size = 0;
  if (!common.known || common.signal || !c.Pointer(common.pointers, &begin) || !c.Pointer(common.pointers & 0x0f, &size)) return {};
  if (address - begin >= size) return {};
  if (common.augmented) c.Skip(c.Unsigned());
  Program program(common, begin, address);
  program.Run(common.program, common.end);
  program.BeginFunction();
  program.Run(c.at(), length.end);
  return RuleOf(program.registers());
}

// The sorted index of a module's functions: pairs of a beginning and a description, from where the index itself lies.
UnwindRule RuleInIndex(const uint8_t* index, uint64_t address) {
  struct Entry {
    int32_t begin, description;
  };
  Cursor c(index);
  const auto version = c.Take<uint8_t>(), frames = c.Take<uint8_t>(), counts = c.Take<uint8_t>(), entries = c.Take<uint8_t>();
  uint64_t unused = 0, count = 0;
  if (version != 1 || entries != 0x3b || !c.Pointer(frames, &unused) || !c.Pointer(counts, &count)) return {};
  const auto wanted = static_cast<int64_t>(address - reinterpret_cast<uint64_t>(index));
  const uint8_t* const table = c.at();
  const auto entry = [table](uint64_t i) {
    Entry e;
    std::memcpy(&e, table + i * sizeof e, sizeof e);
    return e;
  };
  uint64_t low = 0, high = count;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (entry(middle).begin <= wanted) low = middle + 1; else high = middle;
  }
  return low == 0 ? UnwindRule{} : RuleOfFunction(index + entry(low - 1).description, address);
}

struct Question {
  uint64_t address;
  UnwindRule answer;
};

int Ask(dl_phdr_info* info, size_t, void* argument) {
  Question& question = *static_cast<Question*>(argument);
  const uint8_t* index = nullptr;
  bool here = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type == PT_LOAD) here = here || question.address - (info->dlpi_addr + part.p_vaddr) < part.p_memsz;
    if (part.p_type == PT_GNU_EH_FRAME) index = reinterpret_cast<const uint8_t*>(info->dlpi_addr + part.p_vaddr);
  }
  if (!here) return 0;
  if (index != nullptr) question.answer = RuleInIndex(index, question.address);
  return 1;
}
#endif

}  // namespace

UnwindRule RuleAt(uintptr_t address) noexcept {
#if defined(__x86_64__)
  Question question{address, {}};
  dl_iterate_phdr(Ask, &question);  // within it, so that the module cannot go away
  return question.answer;
#else
  (void)address;
  return {};
#endif
}

}  // namespace gpuledger
