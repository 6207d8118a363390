#include "module_scopes.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>

#include "gpuledger/gpuledger.h"
#include "workspaces.h"

namespace gpuledger::pytorch {
namespace {

constexpr size_t kChanges = 1 << 16;
constexpr size_t kThreads = 256;  // that ran a forward pass; of more, only the newest are known

// From this number on, nodes that the thread makes belong to that module; none: to no module.
struct Change {
  uint64_t from;
  OwnerId module;
};
constexpr OwnerId kNoModule = kUnattributed;

std::atomic<bool> any_module = false;

// The changes of all threads, by the number that autograd knows a forward thread by. A thread's numbers never go back.
struct History {
  std::mutex lock;
  std::unordered_map<uint64_t, std::deque<Change>> of_thread;
};
History& TheHistory() {
  static auto* const history = [] {
    auto* const made = new History;  // never destroyed: threads run after main()
    pthread_atfork([] { TheHistory().lock.lock(); }, [] { TheHistory().lock.unlock(); }, [] { TheHistory().lock.unlock(); });
    return made;
  }();
  return *history;
}

void Note(OwnerId module) {
  const uint64_t from = at::sequence_number::peek(), thread = at::RecordFunction::currentThreadId();
  History& history = TheHistory();
  const std::lock_guard guard(history.lock);
  if (history.of_thread.size() == kThreads && !history.of_thread.contains(thread)) history.of_thread.clear();
  std::deque<Change>& changes = history.of_thread[thread];
  if (!changes.empty() && changes.back().from == from) {  // no node was made since the last one
    changes.back().module = module;
    return;
  }
  if (changes.size() == kChanges) changes.pop_front();
  changes.push_back({from, module});
}

struct Entry {
  OwnerId module;
  uint64_t token;
  uintptr_t depth;  // of the stack, which grows downwards
};
std::vector<Entry>& Entries() {
  static thread_local std::vector<Entry> entries;
  return entries;
}

absl::Status Failed() { return absl::InternalError(gpuledger_last_error()); }

// Scopes are opened and closed by token, as C and Python do: a `with` block that somebody left open in between harms nobody.
absl::Status EndInnermost() {
  std::vector<Entry>& entries = Entries();
  const uint64_t token = entries.back().token;
  entries.pop_back();
  return gpuledger_close_scope(token) == GPULEDGER_OK ? absl::OkStatus() : Failed();
}

}  // namespace

std::optional<OwnerId> ModuleOfBackward() noexcept {
  if (!any_module.load(std::memory_order_relaxed)) return std::nullopt;
  const std::shared_ptr<torch::autograd::Node> node = torch::autograd::get_current_node();
  if (node == nullptr || node->sequence_nr() == UINT64_MAX) return std::nullopt;  // what accumulates gradients is of no module
  History& history = TheHistory();
  const std::lock_guard guard(history.lock);
  const auto found = history.of_thread.find(node->thread_id());
  if (found == history.of_thread.end()) return std::nullopt;
  const std::deque<Change>& changes = found->second;
  const auto after = std::upper_bound(changes.begin(), changes.end(), node->sequence_nr(),
                                      [](uint64_t number, const Change& change) { return number < change.from; });
  if (after == changes.begin() || std::prev(after)->module == kNoModule) return std::nullopt;
  return std::prev(after)->module;
}

absl::Status EnterModule(OwnerId module) {
  std::vector<Entry>& entries = Entries();
  const auto depth = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  while (!entries.empty() && entries.back().depth <= depth) static_cast<void>(EndInnermost());  // a block left open outlasts it
  const Payer around = CurrentPayer();
  const gpuledger_payer payer{module.value(), around.scope.value(), static_cast<gpuledger_role>(Role::kActivation)};
  uint64_t token = 0;
  if (gpuledger_adopt_payer(&payer, &token) != GPULEDGER_OK) return Failed();
  entries.push_back({module, token, depth});
  any_module.store(true, std::memory_order_relaxed);
  Note(module);
  return absl::OkStatus();
}

absl::Status LeaveModule(OwnerId module) {
  std::vector<Entry>& entries = Entries();
  auto entry = entries.end();
  while (entry != entries.begin() && std::prev(entry)->module != module) --entry;
  if (entry == entries.begin()) return absl::OkStatus();
  const auto outer = static_cast<size_t>(std::prev(entry) - entries.begin());
  absl::Status status;
  while (entries.size() > outer) status.Update(EndInnermost());
  Note(entries.empty() ? kNoModule : entries.back().module);
  if (entries.empty()) NameWorkspaces();
  return status;
}

}  // namespace gpuledger::pytorch
