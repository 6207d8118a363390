#include "stack_native.h"

#include <pthread.h>
#include <unwind.h>

#include <algorithm>
#include <array>
#include <memory>

namespace gpuledger {
namespace {

struct Bounds {
  uintptr_t low = 0, high = 0;
};

Bounds StackOfThread() noexcept {
  Bounds bounds;
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return bounds;
  void* low = nullptr;
  size_t size = 0;
  if (pthread_attr_getstack(&attributes, &low, &size) == 0) {
    bounds.low = reinterpret_cast<uintptr_t>(low);
    bounds.high = bounds.low + size;
  }
  pthread_attr_destroy(&attributes);
  return bounds;
}

// Code without frame pointers leaves anything in the register: each step stays on this stack and goes outwards, so that garbage
// ends the walk and cannot do more.
size_t ByFramePointers(const Bounds& stack, uintptr_t frame, uintptr_t* addresses) noexcept {
  size_t count = 0;
  while (count < kMostNativeFrames && frame >= stack.low && frame + 2 * sizeof(uintptr_t) <= stack.high && frame % sizeof(uintptr_t) == 0) {
    const auto* const words = reinterpret_cast<const uintptr_t*>(frame);
    if (words[1] < 4096) break;
    addresses[count++] = words[1];
    if (words[0] <= frame) break;
    frame = words[0];
  }
  return count;
}

// A stack that was unwound, and where on it each return address lay, counted from the frame that asked.
struct Remembered {
  uint64_t key = 0;
  size_t count = 0;
  std::array<uintptr_t, kMostNativeFrames> addresses;
  std::array<uintptr_t, kMostNativeFrames> offsets;

  [[nodiscard]] bool LiesHere(uintptr_t base, const Bounds& stack) const {
    if (count == 0 || base + offsets[count - 1] + sizeof(uintptr_t) > stack.high) return false;  // offsets grow outwards
    for (size_t i = count; i-- > 0;) {
      if (*reinterpret_cast<const uintptr_t*>(base + offsets[i]) != addresses[i]) return false;
    }
    return true;
  }
};

struct Memory {
  static constexpr size_t kSets = 64, kWays = 4;
  std::array<std::array<Remembered, kWays>, kSets> sets;
  std::array<uint8_t, kSets> next{};
};

struct Walk {
  std::array<uintptr_t, kMostNativeFrames> addresses, frames;  // and the canonical frame address of each
  size_t count = 0;
};

_Unwind_Reason_Code Step(_Unwind_Context* context, void* argument) {
  Walk& walk = *static_cast<Walk*>(argument);
  const uintptr_t address = _Unwind_GetIP(context);
  if (address == 0 || walk.count == kMostNativeFrames) return _URC_END_OF_STACK;
  walk.frames[walk.count] = _Unwind_GetCFA(context);
  walk.addresses[walk.count++] = address;
  return _URC_NO_REASON;
}

// A return address lies just below the canonical frame address of the frame it returns from. False if one is not found there.
bool Locate(const Walk& walk, uintptr_t base, const Bounds& stack, Remembered& remembered) {
  uintptr_t last = 0;
  for (size_t i = 1; i < walk.count; ++i) {  // the first is the asking function's own position
    bool found = false;
    for (const uintptr_t frame : {walk.frames[i - 1], walk.frames[i]}) {
      const uintptr_t slot = frame - sizeof(uintptr_t);
      if (slot < base || slot + sizeof(uintptr_t) > stack.high || slot < last) continue;
      if (*reinterpret_cast<const uintptr_t*>(slot) != walk.addresses[i]) continue;
      remembered.addresses[i - 1] = walk.addresses[i];
      remembered.offsets[i - 1] = slot - base;
      last = slot;
      found = true;
      break;
    }
    if (!found) return false;
  }
  remembered.count = walk.count - 1;
  return remembered.count > 0;
}

}  // namespace

[[gnu::noinline]] size_t TakeReturnAddresses(uintptr_t* addresses, uint64_t key) noexcept {
  constexpr size_t kEnough = 8;  // a program has more frames than that below an allocation, or all of them had pointers
  thread_local const Bounds stack = StackOfThread();
  const auto base = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  const size_t count = ByFramePointers(stack, base, addresses);
  if (count >= kEnough) return count;
  if (base < stack.low || base >= stack.high) return count;  // a stack of somebody's own making
  for (size_t i = 0; i < count; ++i) key = (key ^ addresses[i]) * 0x9e3779b97f4a7c15, key ^= key >> 32;

  thread_local std::unique_ptr<Memory> memory = std::make_unique<Memory>();
  if (memory == nullptr) return count;  // the thread's objects are gone
  auto& set = memory->sets[key % Memory::kSets];
  for (const Remembered& one : set) {
    if (one.key != key || !one.LiesHere(base, stack)) continue;
    std::copy_n(one.addresses.begin(), one.count, addresses);
    return one.count;
  }
  Walk walk;
  _Unwind_Backtrace(Step, &walk);
  if (walk.count <= 1) return count;
  Remembered& victim = set[memory->next[key % Memory::kSets]++ % Memory::kWays];
  victim.key = key;
  if (!Locate(walk, base, stack, victim)) victim.count = 0;
  std::copy_n(walk.addresses.begin() + 1, walk.count - 1, addresses);
  return walk.count - 1;
}

}  // namespace gpuledger
