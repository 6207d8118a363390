#include "stack_native.h"

#include <pthread.h>
#include <unwind.h>

#include <array>
#include <atomic>
#include <mutex>

#include "unwind_rule.h"

namespace gpuledger {
namespace {

struct Walk {
  uintptr_t* addresses;
  size_t room, count;
  uintptr_t after;
  bool found;
};

_Unwind_Reason_Code Step(_Unwind_Context* context, void* argument) {
  Walk& walk = *static_cast<Walk*>(argument);
  const uintptr_t address = _Unwind_GetIP(context);
  if (address == 0 || walk.count == walk.room) return _URC_END_OF_STACK;
  if (walk.found) walk.addresses[walk.count++] = address;
  walk.found = walk.found || address == walk.after;
  return _URC_NO_REASON;
}

// Behind the frame that returns to `after`.
[[gnu::noinline]] size_t ByUnwinder(uintptr_t after, uintptr_t* addresses, size_t room) noexcept {
  Walk walk{addresses, room, 0, after, false};
  _Unwind_Backtrace(Step, &walk);
  return walk.count;
}

#if defined(__x86_64__)
// Rules by return address, in lines of eight words: what does not fit pushes something out. A word is a whole entry, so that no
// reader sees half of one: the address, but for what its line says of it, and the rule.
class RuleCache {
 public:
  UnwindRule For(uintptr_t address) noexcept {
    const Line& line = lines_[LineOf(address)];
    const uint64_t tag = address >> kLineBits;
    const uint64_t first = line[Favourite(address)].load(std::memory_order_relaxed);
    if (first >> kRuleBits == tag) [[likely]] return Unpacked(first);
    for (const std::atomic<uint64_t>& word : line) {
      const uint64_t entry = word.load(std::memory_order_relaxed);
      if (entry >> kRuleBits == tag) return Unpacked(entry);
    }
    return Ask(address);
  }
  void Clear() noexcept {
    for (Line& line : lines_) {
      for (std::atomic<uint64_t>& word : line) word.store(0, std::memory_order_relaxed);
    }
  }
  std::mutex mutex;

 private:
  static constexpr int kLineBits = 13, kAddressBits = 47, kRuleBits = 64 - (kAddressBits - kLineBits);
  static constexpr int kCfaBits = 18, kSavedBits = 7;  // offsets, in words
  using Line = std::array<std::atomic<uint64_t>, 8>;

  // With the tag it gives the whole address back.
  static size_t LineOf(uintptr_t address) {
    return (address ^ (address >> kLineBits) ^ (address >> 2 * kLineBits)) & ((size_t{1} << kLineBits) - 1);
  }
  static size_t Favourite(uintptr_t address) { return (address >> kLineBits) % 8; }
  static UnwindRule Unpacked(uint64_t entry) {
    UnwindRule rule;
    rule.cfa = static_cast<UnwindRule::Cfa>(entry & 7);
    rule.saved = static_cast<UnwindRule::Saved>(entry >> 3 & 3);
    rule.saved_offset = static_cast<int32_t>(static_cast<int64_t>(entry << (64 - 5 - kSavedBits)) >> (64 - kSavedBits)) * 8;
    rule.cfa_offset = static_cast<int32_t>(static_cast<int64_t>(entry << (64 - kRuleBits)) >> (64 - kCfaBits)) * 8;
    return rule;
  }
  static uint64_t Packed(uintptr_t address, const UnwindRule& rule) {
    const auto bits = [](int32_t offset, int width) { return static_cast<uint64_t>(offset / 8) & ((uint64_t{1} << width) - 1); };
    return address >> kLineBits << kRuleBits | bits(rule.cfa_offset, kCfaBits) << (5 + kSavedBits) |
           bits(rule.saved_offset, kSavedBits) << 5 | static_cast<uint64_t>(rule.saved) << 3 | static_cast<uint64_t>(rule.cfa);
  }
  [[gnu::noinline, gnu::cold]] UnwindRule Ask(uintptr_t address) noexcept {
    if (address >> kAddressBits != 0) return {};
    UnwindRule rule;
    {
      const std::lock_guard lock(mutex);
      rule = RuleAt(address - 1);
    }
    uint64_t entry = Packed(address, rule);
    const UnwindRule back = Unpacked(entry);
    if (back.cfa_offset != rule.cfa_offset || back.saved_offset != rule.saved_offset) entry = Packed(address, rule = {});
    Line& line = lines_[LineOf(address)];
    const size_t favourite = Favourite(address);
    size_t place = 0;
    while (place < line.size() && line[favourite ^ place].load(std::memory_order_relaxed) != 0) ++place;
    line[favourite ^ place % line.size()].store(entry, std::memory_order_relaxed);
    return rule;
  }

  alignas(64) std::array<Line, size_t{1} << kLineBits> lines_{};
};
static_assert(static_cast<int>(UnwindRule::Cfa::kBehindFramePointer) < 8);

constinit RuleCache rules;

// Where the calling thread's stack ends.
uintptr_t EndOfStack() noexcept {
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return 0;
  void* low = nullptr;
  size_t size = 0;
  const bool known = pthread_attr_getstack(&attributes, &low, &size) == 0;
  pthread_attr_destroy(&attributes);
  return known ? reinterpret_cast<uintptr_t>(low) + size : 0;
}

// 0 if a rule is missing or leads off this stack: each step goes outwards, and what is read lies between `frame` and the end.
// Not instrumented: it reads what the frames of others keep.
[[gnu::no_sanitize("address", "thread")]] size_t ByRules(uintptr_t frame, uintptr_t* addresses, size_t room) noexcept {
  thread_local const uintptr_t end = EndOfStack();
  const auto word = [](uintptr_t at) __attribute__((no_sanitize("address", "thread"))) { return *reinterpret_cast<const uintptr_t*>(at); };
  const auto outside = [frame](uintptr_t at) { return at < frame || at > end - sizeof(uintptr_t) || at % sizeof(uintptr_t) != 0; };
  if (frame >= end || outside(frame + sizeof(uintptr_t))) return 0;
  uintptr_t stack = frame + 2 * sizeof(uintptr_t), frame_pointer = word(frame), address = word(frame + sizeof(uintptr_t));
  for (size_t count = 0; count < room; addresses[count++] = address) {
    const UnwindRule rule = rules.For(address);
    uintptr_t cfa = (rule.cfa == UnwindRule::Cfa::kStackPointer ? stack : frame_pointer) + static_cast<uintptr_t>(int64_t{rule.cfa_offset});
    if (rule.cfa != UnwindRule::Cfa::kStackPointer && rule.cfa != UnwindRule::Cfa::kFramePointer) [[unlikely]] {
      if (rule.cfa == UnwindRule::Cfa::kEnd) return count;
      if (rule.cfa == UnwindRule::Cfa::kUnknown || outside(cfa)) return 0;
      cfa = word(cfa);
    }
    if (cfa <= stack || outside(cfa - sizeof(uintptr_t))) return 0;
    if (rule.saved != UnwindRule::Saved::kKept) {
      const uintptr_t saved = (rule.saved == UnwindRule::Saved::kAtCfa ? cfa : frame_pointer) + static_cast<uintptr_t>(int64_t{rule.saved_offset});
      if (outside(saved)) return 0;
      frame_pointer = word(saved);
    }
    address = word(cfa - sizeof(uintptr_t));
    stack = cfa;
    if (address == 0) return count;
  }
  return room;
}
#endif

}  // namespace

[[gnu::noinline]] size_t TakeReturnAddresses(uintptr_t* addresses, size_t room) noexcept {
#if defined(__x86_64__)
  if (const size_t count = ByRules(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)), addresses, room); count > 0) return count;
#endif
  return ByUnwinder(reinterpret_cast<uintptr_t>(__builtin_return_address(0)), addresses, room);
}

#if defined(__x86_64__)
void ForgetUnwindRules() noexcept { rules.Clear(); }
void LockUnwindRulesForFork() noexcept { rules.mutex.lock(); }
void UnlockUnwindRulesAfterFork() noexcept { rules.mutex.unlock(); }
#else
void ForgetUnwindRules() noexcept {}
void LockUnwindRulesForFork() noexcept {}
void UnlockUnwindRulesAfterFork() noexcept {}
#endif

}  // namespace gpuledger
