// allocator/torch/cuda/spin_lock.h - a lock for some ten instructions, which every allocation of a device takes.
#pragma once

#include <atomic>

#include <sched.h>

namespace gpuledger::pytorch {

class SpinLock {
 public:
  void lock() noexcept {
    for (int tries = 0; taken_.exchange(true, std::memory_order_acquire); ++tries) {
      while (taken_.load(std::memory_order_relaxed)) {
        if (++tries > 100) sched_yield();  // whoever holds it may have been interrupted
      }
    }
  }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> taken_ = false;
};

}  // namespace gpuledger::pytorch
