#include "facts.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <string_view>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "gpuledger/process.h"
#include "gpuledger/recorder.h"

namespace gpuledger {
namespace {

// A block has few holders that help anybody; the rest would only be memory.
constexpr size_t kMostOfOneBlock = 64;
constexpr size_t kFewestBlocks = 1024;

struct Facts {
  std::mutex mutex;
  absl::flat_hash_map<AllocationId, std::vector<KnownFact>> of;
  uint64_t newest = 0;
  size_t look_again_at = kFewestBlocks;  // blocks with facts
};

Facts& All() {
  static Facts& facts = []() -> Facts& {
    pthread_atfork([] { All().mutex.lock(); }, [] { All().mutex.unlock(); }, [] { All().mutex.unlock(); });
    return *new Facts;  // never destroyed: facts are legal after main()
  }();
  return facts;
}

absl::flat_hash_set<AllocationId> EverythingLive() {
  absl::flat_hash_set<AllocationId> live;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    for (const LiveAllocation& a : keeper.ledger().live()) live.insert(a.id);
  });
  return live;
}

bool HasText(FactKind kind) { return kind != FactKind::kLargestView && kind != FactKind::kUnreachable; }

// True if facts of freed blocks should be dropped.
bool Remember(AllocationId allocation, KnownFact fact) {
  const std::lock_guard<std::mutex> lock(All().mutex);
  fact.number = ++All().newest;
  std::vector<KnownFact>& known = All().of[allocation];
  // One of a kind where only the last one can be true; of the others, each text once.
  const bool one = fact.kind == FactKind::kTensor || fact.kind == FactKind::kAliases || !HasText(fact.kind);
  std::erase_if(known, [&](const KnownFact& k) { return k.kind == fact.kind && (one || k.text == fact.text); });
  if (known.size() == kMostOfOneBlock) known.erase(known.begin());
  known.push_back(std::move(fact));
  return All().of.size() >= All().look_again_at;
}

}  // namespace

absl::Status NoteFact(uint64_t address, FactKind kind, uint64_t value, std::string_view text) {
  const absl::StatusOr<LiveAllocation> block = FindInProcess(address);
  if (!block.ok()) return block.status();
  if (block->pending) return absl::NotFoundError(fmt::format("the block that holds {:#x} has been freed: no fact of it helps", address));
  if (Remember(block->id, {kind, value, std::string(text), 0})) KeepFactsOf(EverythingLive());
  if (Recorder* recorder = Recorder::OfProcess()) recorder->Fact(block->address.device(), block->id, kind, value, text);
  return absl::OkStatus();
}

uint64_t NewestFact() {
  const std::lock_guard<std::mutex> lock(All().mutex);
  return All().newest;
}

std::vector<KnownFact> FactsOf(AllocationId allocation) {
  const std::lock_guard<std::mutex> lock(All().mutex);
  const auto found = All().of.find(allocation);
  return found == All().of.end() ? std::vector<KnownFact>() : found->second;
}

void KeepFactsOf(const absl::flat_hash_set<AllocationId>& live) {
  const std::lock_guard<std::mutex> lock(All().mutex);
  absl::erase_if(All().of, [&](const auto& entry) { return !live.contains(entry.first); });
  All().look_again_at = std::max(kFewestBlocks, 2 * All().of.size());
}

}  // namespace gpuledger
