// The model test at scale: its operations, each printable as C++, and what an episode runs on.
//
// An operation names its block by a slot of a table, so that it means the same after other operations were dropped from
// the sequence: one on a slot that is empty (or, for an allocation, taken) does nothing.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/types.h"

namespace gpuledger::scale {

enum class Do : uint8_t {
  kAllocate,     // value: bytes; stream, payer, pool
  kFree,
  kUseOn,        // stream
  kTransfer,     // payer
  kPass,         // the held fences of `stream` pass
  kPassAll,
  kFail,         // call: the `value`th call of this kind from now on fails
  kCap,          // value: bytes
  kSoftCap,      // payer: its owner; value: bytes, 0 for none
  kComplete,
  kRelease,
  kReleaseIdle,  // value: nanoseconds
  kSettle,
  kCreatePool,   // pool: its place in the table
  kReleasePool,
  kRetire,       // stream
  kOnMemory,     // registers a callback that frees up to `value` blocks, and one near the cap
  kOffMemory,    // takes the oldest callbacks away
  kRefuse,       // a request that must fail; value: which
  kResetPeak,
  kSwitch,       // value: the worker thread that goes on
  kExit,         // this worker ends; another thread is born in its place
  kGive,         // value: the lane that gets the block of the slot (lanes that run at once)
};
inline constexpr int kDoCount = 23;
inline constexpr const char* kDoNames[kDoCount] = {
    "kAllocate", "kFree", "kUseOn", "kTransfer", "kPass", "kPassAll", "kFail", "kCap", "kSoftCap", "kComplete", "kRelease", "kReleaseIdle",
    "kSettle", "kCreatePool", "kReleasePool", "kRetire", "kOnMemory", "kOffMemory", "kRefuse", "kResetPeak", "kSwitch", "kExit", "kGive"};

struct Operation {
  Do what = Do::kComplete;
  uint8_t stream = 0, payer = 0, pool = 0, call = 0;
  uint32_t slot = 0;
  uint64_t value = 0;
};

// What an episode runs on.
enum class On : uint8_t { kFake, kFakeUnaliased, kFakeWholeRanges, kHostAnonymous, kHostMemfd };
inline constexpr const char* kOnNames[] = {"kFake", "kFakeUnaliased", "kFakeWholeRanges", "kHostAnonymous", "kHostMemfd"};

struct Scene {
  On on = On::kFake;
  uint64_t memory = uint64_t{256} << 20;  // of the upstream
  uint64_t cap = ~uint64_t{0};            // of the allocator, at the beginning
  uint32_t slots = 1024;                  // of each lane
  uint32_t workers = 1;                   // threads that take turns (one lane), or run at once (a lane each)
  bool hold = true;                       // fences pass when told
  bool per_thread = true;                 // per-thread default streams are used
  uint64_t release_after = 0;             // nanoseconds
};

inline std::string AsText(const Operation& o) {
  std::string text = fmt::format("{{.what = Do::{}", kDoNames[static_cast<int>(o.what)]);
  if (o.stream != 0) text += fmt::format(", .stream = {}", o.stream);
  if (o.payer != 0) text += fmt::format(", .payer = {}", o.payer);
  if (o.pool != 0) text += fmt::format(", .pool = {}", o.pool);
  if (o.call != 0) text += fmt::format(", .call = {}", o.call);
  if (o.slot != 0) text += fmt::format(", .slot = {}", o.slot);
  if (o.value != 0) text += fmt::format(", .value = {}", o.value);
  return text + "}";
}

inline std::string AsText(const Scene& s) {
  return fmt::format("{{.on = On::{}, .memory = {}u, .cap = {}u, .slots = {}, .workers = {}, .hold = {}, .per_thread = {}, .release_after = {}}}",
                     kOnNames[static_cast<int>(s.on)], s.memory, s.cap, s.slots, s.workers, s.hold, s.per_thread, s.release_after);
}

inline std::string AsRegression(const Scene& scene, std::span<const Operation> operations) {
  std::string text = "Replay(" + AsText(scene) + ", {\n";
  for (const Operation& o : operations) text += "  " + AsText(o) + ",\n";
  return text + "});";
}

// Splitmix64: as good as is needed here, and a nanosecond.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t operator()() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return static_cast<uint64_t>((static_cast<unsigned __int128>((*this)()) * n) >> 64); }

 private:
  uint64_t state_;
};

}  // namespace gpuledger::scale
