// What the environment asks of the fake: see README.md, which has the same list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fake_cuda {

inline constexpr uint64_t kGranule = uint64_t{2} << 20;  // device memory is handed out in multiples of this

// Which calls of a function fail, and with what: see ParseFaults.
struct Fault {
  std::string function;
  uint64_t call;
  enum class When { kOnce, kFrom, kEvery } when;
  int error;

  bool Hits(uint64_t count) const {
    if (when == When::kEvery) return count % call == 0;
    return when == When::kOnce ? count == call : count >= call;
  }
};

// "cuMemCreate:3=2" the third call returns 2; "cuMemCreate:3+=2" the third and all later; "cuMemCreate:*3=2" each
// third. Several are separated by commas. Appends to `faults`; false with a sentence in `problem`.
bool ParseFaults(const std::string& text, std::vector<Fault>& faults, std::string& problem);

struct Options {
  int devices = 1;
  uint64_t memory = uint64_t{80} << 30;  // of each device, a multiple of kGranule
  int major = 9, minor = 0;
  bool misuse_aborts = true;
  bool capture_misuse_aborts = false;
  bool hold_events = false;
  bool peers = true;
  std::string trace;  // path, empty: none
  std::vector<Fault> faults;
  std::map<std::string, uint64_t> latency_ns;  // by the name without suffix

  // Reads FAKE_CUDA_*; false with a sentence in `problem` if a name or a value means nothing.
  static bool Read(Options& options, std::string& problem);
};

}  // namespace fake_cuda
