// tracing/facts.h - what was found out about blocks while it could be seen: remembered until the block is freed.
//
// Process-wide, by allocation id. Bounded by what is live: those of freed blocks are dropped whenever a settle looks, and
// whenever twice as many have come in as were left then. Thread-safe; takes no lock of an allocator while it holds its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/container/flat_hash_set.h>
#include <absl/status/status.h>

#include "gpuledger/trace.h"
#include "gpuledger/types.h"

namespace gpuledger {

struct KnownFact {
  FactKind kind = FactKind::kHolder;
  uint64_t value = 0;
  std::string text;
  uint64_t number = 0;  // facts are counted as they come: of two, the larger one is the newer
};

// About the block in use that holds `address`, of any allocator: remembers it, and writes it to the trace. What is said twice
// counts once, as new. kNotFound if no such block is in use.
absl::Status NoteFact(uint64_t address, FactKind kind, uint64_t value, std::string_view text);

// The number of the newest fact.
uint64_t NewestFact();
// In the order in which they came.
std::vector<KnownFact> FactsOf(AllocationId allocation);
// Drops those of all other allocations.
void KeepFactsOf(const absl::flat_hash_set<AllocationId>& live);

}  // namespace gpuledger
