// gpuledger/payer_source.h - whom a thread pays as while it is in no scope: a seam for runtimes with threads of their own.
//
// A runtime that hands work to its own threads (autograd) knows for whom they work; the core does not. It tells by setting a
// PayerSource, and learns by a PublishedPayer what the thread pays as that handed the work over. Thread-safe; legal after main().
#pragma once

#include <atomic>

#include "gpuledger/owner.h"

namespace gpuledger {

// What one thread pays as, for others to read while it is in a scope; `unattributed` while it is in none. Written by that thread
// alone. A reader that is not ordered after the last change (the writer did not wait for it) may see a transient scope that goes
// with another owner.
class PublishedPayer {
 public:
  void Set(Payer payer) noexcept {
    owner_and_role_.store(uint64_t{payer.owner.value()} << 8 | static_cast<uint8_t>(payer.role), std::memory_order_relaxed);
    scope_.store(payer.scope.value(), std::memory_order_relaxed);
  }
  [[nodiscard]] Payer Get() const noexcept {
    const uint64_t both = owner_and_role_.load(std::memory_order_relaxed);
    return {OwnerId(static_cast<uint32_t>(both >> 8)), static_cast<Role>(both & 0xff), ScopeId(scope_.load(std::memory_order_relaxed))};
  }

 private:
  std::atomic<uint64_t> owner_and_role_{uint64_t{kUnattributed.value()} << 8 | static_cast<uint8_t>(Role::kOther)};
  std::atomic<uint32_t> scope_{0};
};

// Called on the thread in question, with no lock held; must not enter a scope or allocate through a ledger.
class PayerSource {
 public:
  virtual ~PayerSource() = default;
  // The payer of this thread, which is in no scope: CurrentPayer() there, and what scopes that it enters nest in.
  [[nodiscard]] virtual Payer WithoutScope() noexcept = 0;
  // This thread, in no scope so far, enters one. Where it publishes its payer until it has left it or says StopPublishing();
  // null for nowhere.
  [[nodiscard]] virtual PublishedPayer* ScopeEntered() noexcept = 0;
};

// One for the process, for good; null, and `unattributed`, until it is set.
GPULEDGER_EXPORT void SetPayerSource(PayerSource* source) noexcept;
// What ScopeEntered returned on this thread is about to go, if anything.
GPULEDGER_EXPORT void StopPublishing() noexcept;

}  // namespace gpuledger
