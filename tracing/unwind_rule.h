// tracing/unwind_rule.h - how one gets from a frame to its caller's, at one place in code, by the tables of exception handling.
#pragma once

#include <cstdint>

namespace gpuledger {

// What is needed of the registers is the stack pointer and the frame pointer. The return address lies below the canonical frame
// address (the caller's stack pointer).
struct UnwindRule {
  enum class Cfa : uint8_t {
    kUnknown,             // no table, or a rule of another shape
    kEnd,                 // the outermost frame
    kStackPointer,        // stack pointer + cfa_offset
    kFramePointer,        // frame pointer + cfa_offset
    kBehindFramePointer,  // what lies at frame pointer + cfa_offset: functions that align their stack
  };
  enum class Saved : uint8_t { kKept, kAtCfa, kAtFramePointer };  // the caller's frame pointer: unchanged, or at saved_offset from
  Cfa cfa = Cfa::kUnknown;
  Saved saved = Saved::kKept;
  int32_t cfa_offset = 0, saved_offset = 0;
};

// For the instruction at `address`; for a caller that is the call, one byte before the return address. Takes the loader's lock
// for a microsecond. x86-64; elsewhere always kUnknown.
UnwindRule RuleAt(uintptr_t address) noexcept;

}  // namespace gpuledger
