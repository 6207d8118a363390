// The model test at scale: episodes of workers that take turns, each in a forked child so that a crash is a failure like
// any other, made small when one fails; and episodes of lanes that run at once.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "scale_model_operation.h"

namespace gpuledger::scale {

struct Outcome {
  std::string failure;  // empty: all held
  std::vector<Operation> operations;  // up to the failure
  uint64_t done = 0, requests = 0, refusals = 0, relieved = 0, births = 0, sweeps = 0;
};

// `count` operations from `seed`, a sweep every `sweep_every`, in a child of this process, by scene.workers threads that
// take turns: the same seed is the same episode.
Outcome RunEpisode(const Scene& scene, uint64_t seed, uint64_t count, uint64_t sweep_every, bool with_faults);
// These operations, in a child. `quiet`: what the child says on stderr is thrown away.
Outcome RunSequence(const Scene& scene, std::span<const Operation> operations, uint64_t sweep_every, bool quiet);
// A shorter sequence that fails, found within `seconds`: chunks are dropped while it still fails for the same reason (the
// first that frequent sweeps find).
std::vector<Operation> Minimise(const Scene& scene, std::vector<Operation> operations, double seconds);

// `count` operations in all, by scene.workers threads at once, that meet every `sweep_every` for a sweep. In this process.
Outcome RunAtOnce(const Scene& scene, uint64_t seed, uint64_t count, uint64_t sweep_every, bool with_faults);

}  // namespace gpuledger::scale
