// Facts, and a settle in steps, for C.
#include <fmt/format.h>

#include "c_settle_state.h"
#include "gpuledger/c_status.h"

namespace gpuledger {
namespace {

absl::Status Missing(std::string_view what) { return absl::InvalidArgumentError(fmt::format("{} is NULL", what)); }

// Runs body(Settle&), or says that there is none.
template <class State, class Body>
gpuledger_status With(State* state, Body body) noexcept {
  return Guard([&]() -> absl::Status { return state == nullptr ? Missing("settle") : body(state->settle); });
}

}  // namespace
}  // namespace gpuledger

using namespace gpuledger;  // the functions below are C

gpuledger_status gpuledger_fact(uint64_t address, gpuledger_fact_kind kind, uint64_t value, const char* text) noexcept {
  return Guard([&]() -> absl::Status {
    static_assert(static_cast<int>(FactKind::kTensor) == GPULEDGER_FACT_TENSOR);
    if (kind < GPULEDGER_FACT_HOLDER || kind > GPULEDGER_FACT_TENSOR) {
      return absl::InvalidArgumentError(fmt::format("{} is no kind of fact", kind));
    }
    return Settle::NoteFact(address, static_cast<FactKind>(kind), value, text == nullptr ? "" : text);
  });
}

gpuledger_status gpuledger_settle_begin(gpuledger_settle_state** settle) noexcept {
  return Guard([&]() -> absl::Status {
    if (settle == nullptr) return Missing("settle");
    *settle = new gpuledger_settle_state;
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_settle_complete(gpuledger_settle_state* settle) noexcept {
  return With(settle, [](Settle& s) { return s.Complete(); });
}

gpuledger_status gpuledger_settle_collected(gpuledger_settle_state* settle) noexcept {
  return With(settle, [](Settle& s) {
    s.Collected();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_settle_released(gpuledger_settle_state* settle) noexcept {
  return With(settle, [](Settle& s) {
    s.Released();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_settle_find_lost(gpuledger_settle_state* settle) noexcept {
  return With(settle, [](Settle& s) { return s.FindLost(); });
}

gpuledger_status gpuledger_settle_blocks(const gpuledger_settle_state* settle, uint64_t* addresses, uint64_t* sizes, uint64_t room,
                                         uint64_t* count) noexcept {
  return With(settle, [&](const Settle& s) -> absl::Status {
    if (count == nullptr || (room != 0 && (addresses == nullptr || sizes == nullptr))) return Missing("addresses, sizes or count");
    const std::vector<Settle::Place> places = s.places();
    for (size_t i = 0; i < places.size() && i < room; ++i) addresses[i] = places[i].address, sizes[i] = places[i].size.count();
    *count = places.size();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_settle_end(gpuledger_settle_state* settle) noexcept {
  return With(settle, [](Settle& s) {
    s.End();
    return absl::OkStatus();
  });
}

void gpuledger_settle_free(gpuledger_settle_state* settle) noexcept { delete settle; }
