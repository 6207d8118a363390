#include "requests.h"

#include <bit>
#include <cstdlib>
#include <limits>

#include <fmt/format.h>

#include <c10/cuda/CUDAAllocatorConfig.h>

namespace gpuledger::pytorch {
namespace {

using c10::CachingAllocator::AcceleratorAllocatorConfig;
using c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig;

constexpr Bytes kWhole = Bytes(uint64_t{2} << 20);

// The next of so many equal steps from one power of two to the next (roundup_power2_divisions in PyTorch's notes on CUDA).
Bytes RoundedToDivisions(size_t size, size_t divisions) {
  const size_t power = std::bit_floor(size);
  if (power == size) return Bytes(size);
  const size_t step = power / std::bit_floor(divisions);
  return step == 0 ? Bytes(power * 2) : Bytes(size).RoundUpTo(Bytes(step));
}

}  // namespace

Bytes RoomFor(size_t size, bool whole) {
  Bytes room(size);
  const size_t divisions = AcceleratorAllocatorConfig::roundup_power2_divisions(size);
  if (divisions > 1 && size > SizeClass::kGranule.count() * divisions) room = RoundedToDivisions(size, divisions);
  return whole ? room.RoundUpTo(kWhole) : room;
}

bool CachingSwitchedOff() {
  static const bool off = std::getenv("PYTORCH_NO_CUDA_MEMORY_CACHING") != nullptr;
  return off;
}

double ConfiguredMemoryFraction() { return CUDAAllocatorConfig::per_process_memory_fraction(); }

int64_t MaxSplitSize() {
  const size_t size = AcceleratorAllocatorConfig::max_split_size();
  return size == std::numeric_limits<size_t>::max() ? -1 : static_cast<int64_t>(size);
}

std::string UnhonouredSettings() {
  CUDAAllocatorConfig::instance();  // has parsed the environment when it is there
  const std::string settings = c10::CachingAllocator::getAllocatorSettings();
  std::string lines;
  for (const auto& [key, why] : {
           std::pair{"max_split_size_mb", "free blocks of any size are split, and their memory moves to where it is needed"},
           std::pair{"max_non_split_rounding_mb", "every free block is split"},
           std::pair{"garbage_collection_threshold", "cached memory moves to where it is needed before the limit is reached; GPULEDGER_RELEASE_AFTER gives it back by age"},
           std::pair{"large_segment_size_mb", "segments grow by what is needed"},
           std::pair{"expandable_segments:False", "segments always expand"},
           std::pair{"graph_capture_record_stream_reuse", "blocks that other streams of a capture used wait until it is over"},
       }) {
    if (settings.find(key) != std::string::npos) lines += fmt::format("gpuledger: PYTORCH_ALLOC_CONF: {} is not followed: {}\n", key, why);
  }
  return lines;
}

}  // namespace gpuledger::pytorch
