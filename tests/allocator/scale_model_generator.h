// Makes operations up: a stream of them from a seed and from what is live, in moods that change every few thousand.
#pragma once

#include <algorithm>
#include <bit>

#include "scale_model_lane.h"

namespace gpuledger::scale {

class Generator {
 public:
  Generator(uint64_t seed, const Scene& scene, bool at_once, bool with_faults)
      : random(seed), scene_(scene), at_once_(at_once), with_faults_(with_faults) {}

  Operation Next(const Lane& lane) {
    if (mood_left_-- == 0) ChangeMood();
    if (low_cap_left_ != 0 && --low_cap_left_ == 0) return {.what = Do::kCap, .value = ~uint64_t{0}};
    const uint64_t dice = random.below(1 << 16);
    if (dice < 1 << 11) return Seldom(lane, static_cast<uint32_t>(dice));
    const bool more = lane.in_use_slots() < wanted_ && lane.in_use < wanted_bytes_;
    const bool grow = random.below(64) < (more ? 40u : 24u);
    if ((grow && !lane.full()) || lane.in_use_slots() == 0) {
      if (lane.full()) return {.what = Do::kComplete};
      const auto payer = static_cast<uint8_t>(random.below(16) == 0 ? kPayers + random.below(kPayers) : random.below(kPayers));
      return {.what = Do::kAllocate, .stream = SomeStream(lane), .payer = payer, .pool = SomePool(), .slot = lane.SomeVacant(random), .value = SomeSize()};
    }
    const uint32_t slot = lane.SomeTaken(random);
    const uint64_t what = random.below(64);
    if (what < 4) return {.what = Do::kUseOn, .stream = SomeStream(lane), .slot = slot};
    if (what < 6) return {.what = Do::kTransfer, .payer = static_cast<uint8_t>(random.below(kPayers)), .slot = slot};
    if (what < 9 && at_once_ && scene_.workers > 1) return {.what = Do::kGive, .slot = slot, .value = random.below(64)};
    return {.what = Do::kFree, .slot = slot};
  }

  Random random;

 private:
  // `dice` is one of 2048; the caller comes here once in 32 times.
  Operation Seldom(const Lane& lane, uint32_t dice) {
    if (dice < 600) return {.what = Do::kComplete};
    if (dice < 1300) return {.what = Do::kPass, .stream = SomeStream(lane)};
    if (dice < 1350) return {.what = Do::kPassAll};
    if (dice < 1450) return {.what = Do::kRefuse, .stream = static_cast<uint8_t>(random.below(kSharedStreams)), .value = 1 + random.below(3)};
    if (dice < 1454) return {.what = Do::kRefuse, .stream = static_cast<uint8_t>(random.below(kSharedStreams)), .value = 0};
    if (dice < 1460) return {.what = Do::kSettle};
    if (dice < 1466) return {.what = Do::kRelease};
    if (dice < 1472) return {.what = Do::kReleaseIdle, .value = random.below(2) == 0 ? random.below(1 << 20) : random.below(1 << 26)};
    if (dice < 1476) {
      low_cap_left_ = 1 + random.below(100);
      return {.what = Do::kCap, .value = scene_.memory / 64 * (1 + random.below(70))};
    }
    if (dice < 1500) return {.what = Do::kSoftCap, .payer = static_cast<uint8_t>(random.below(kOwners)), .value = random.below(scene_.memory / 4)};
    if (dice < 1503) return {.what = Do::kCreatePool, .pool = static_cast<uint8_t>(random.below(kPrivatePools))};
    if (dice < 1505) return {.what = Do::kReleasePool, .pool = static_cast<uint8_t>(random.below(kPrivatePools))};
    if (dice < 1530) return {.what = Do::kRetire, .stream = OwnStream(lane)};
    if (dice < 1534) return {.what = Do::kOnMemory, .value = 1 + random.below(32)};
    if (dice < 1540) return {.what = Do::kOffMemory};
    if (dice < 1560) return {.what = Do::kResetPeak};
    if (dice < 1900 && !at_once_ && scene_.workers > 1) return {.what = Do::kSwitch, .value = random.below(scene_.workers)};
    if (dice >= 1900 && dice < 1906) return {.what = Do::kExit};
    if (dice >= 1910 && dice < 1990 && with_faults_) {
      return {.what = Do::kFail, .call = static_cast<uint8_t>(random.below(kUpstreamCallCount)), .value = 1 + random.below(8)};
    }
    return {.what = Do::kComplete};
  }

  void ChangeMood() {
    mood_left_ = 500 + random.below(8000);
    wanted_ = 1 + random.below(scene_.slots);
    if (random.below(4) == 0) wanted_ = 1 + random.below(32);
    // Seldom more than there is: a request that fails takes a thousand times as long as one that does not.
    const bool too_much = random.below(16) == 0;
    if (too_much) mood_left_ = 200;
    wanted_bytes_ = scene_.memory / (at_once_ ? scene_.workers : 1) / 16 * (too_much ? 18 : 1 + random.below(11));
    largest_ = random.below(6) == 0 ? 16 + random.below(7) : 9 + random.below(7);  // up to 4 MiB, and mostly what caches serve
    exact_ = random.below(3) == 0 ? 64 : static_cast<uint32_t>(random.below(40));
    for (uint64_t& size : sizes_) size = LogUniform(largest_);
    streams_ = random.below(3);
    private_ = random.below(3) == 0;
  }

  uint64_t LogUniform(uint64_t bits) {
    const uint64_t top = uint64_t{1} << random.below(bits);
    return top + random.below(top);
  }
  uint64_t SomeSize() {
    if (random.below(64) < exact_) return sizes_[random.below(8)];
    return random.below(1024) == 0 ? 0 : LogUniform(random.below(256) == 0 ? 24 : largest_);
  }
  uint8_t OwnStream(const Lane& lane) {
    return static_cast<uint8_t>(kSharedStreams + static_cast<uint64_t>(lane.number) * kOwnStreams + random.below(kOwnStreams));
  }
  uint8_t SomeStream(const Lane& lane) {
    const uint64_t dice = random.below(64);
    if (dice == 0 && scene_.per_thread) return kPerThread;
    if (dice == 1) return kLegacy;
    if (streams_ == 0) return 0;
    return dice < 32 ? OwnStream(lane) : static_cast<uint8_t>(random.below(kSharedStreams));
  }
  uint8_t SomePool() { return private_ && random.below(4) == 0 ? static_cast<uint8_t>(1 + random.below(kPrivatePools)) : 0; }

  const Scene& scene_;
  const bool at_once_, with_faults_;
  uint64_t mood_left_ = 0, low_cap_left_ = 0, wanted_ = 1, wanted_bytes_ = 1, largest_ = 10, streams_ = 0;
  uint32_t exact_ = 0;
  uint64_t sizes_[8] = {};
  bool private_ = false;
};

}  // namespace gpuledger::scale
