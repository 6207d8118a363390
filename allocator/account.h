// allocator/account.h - one total of the ledger, which many may read while one writes; and the directory of all owners'.
//
// An account is written under the ledger's central mutex and read without it: `version` is odd while a write is going on,
// and a reader that saw it change reads again. A field is stored with release and loaded with acquire, so that whoever saw
// a new field sees the odd version too (on x86-64 these are plain moves).
//
// Numbers here are unsigned and wrap: what shards hold back is not in them, so `in_use` alone may be "below zero" for a
// while. in_use + granted never is: it is what is in use plus what shards may still charge on their own.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <memory>

#include "gpuledger/ledger.h"

namespace gpuledger {

// A change of an account, or a sum of such changes.
struct Delta {
  // In this order, so that a debit or a credit is two or three additions of pairs.
  uint64_t in_use = 0, requested = 0, count = 0, charged_ever = 0, pending = 0, pending_count = 0;

  Delta& operator+=(const Delta& d) {
    in_use += d.in_use, requested += d.requested, pending += d.pending;
    charged_ever += d.charged_ever, count += d.count, pending_count += d.pending_count;
    return *this;
  }
  [[nodiscard]] bool is_zero() const {
    return (in_use | requested | pending | charged_ever | count | pending_count) == 0;
  }
  static Delta OfDebit(Bytes charged, Bytes requested) {
    return {.in_use = charged.count(), .requested = requested.count(), .count = 1, .charged_ever = charged.count()};
  }
  static Delta OfFree(Bytes charged, Bytes requested, bool becomes_pending) {
    const uint64_t c = charged.count(), pends = becomes_pending ? 1 : 0;
    return {.in_use = 0 - c, .requested = 0 - requested.count(), .count = uint64_t{0} - 1, .pending = pends * c, .pending_count = pends};
  }
  static Delta OfCompletion(Bytes charged) { return {.pending = 0 - charged.count(), .pending_count = uint64_t{0} - 1}; }
};

class Account {
 public:
  // ---- for whoever holds the ledger's central mutex ----

  // Applies a change; a new peak if in_use rises above it (then nothing may be granted). True if it did.
  bool Change(const Delta& d, uint64_t epoch);
  // Applies what a shard held back: its budget shrinks by what it used of it, so in_use + granted stays.
  void Drain(const Delta& d, uint64_t epoch);
  // What may be charged without a new peak and without crossing an armed soft cap.
  [[nodiscard]] uint64_t headroom() const { return limit_ - Get(in_use_) - granted_; }
  // Hands a shard at least `wanted` of the headroom (Requires: no more than there is), and some more for the next time.
  uint64_t Grant(uint64_t wanted) {
    const uint64_t room = headroom();
    const uint64_t given = std::min(room, std::max(wanted, room / 16));
    granted_ += given;
    return given;
  }
  void Return(uint64_t room) { granted_ -= room; }
  void ResetPeak();
  // Moves `charged` of the value at the device's peak from one account to another (a Transfer of what was live then).
  void MoveSaved(uint64_t change, uint64_t epoch);
  // in_use above this is for central eyes alone: the lower of peak and armed soft cap.
  void set_soft_limit(uint64_t limit) { soft_limit_ = limit, SetLimit(); }
  [[nodiscard]] uint64_t in_use() const { return Get(in_use_); }
  [[nodiscard]] uint64_t peak() const { return Get(peak_); }
  [[nodiscard]] uint64_t granted() const { return granted_; }
  [[nodiscard]] bool has_live() const { return (Get(count_) | Get(pending_count_)) != 0; }

  // ---- for everybody ----

  // What it holds, plus `own`: what the caller's shard holds back. Below zero (a shard freed what another has not told of
  // yet) reads as zero.
  [[nodiscard]] Usage Read(const Delta& own, const std::atomic<uint64_t>& epoch) const;

 private:
  using Field = std::atomic<uint64_t>;
  static uint64_t Get(const Field& field) { return field.load(std::memory_order_acquire); }
  static void Put(Field& field, uint64_t value) { field.store(value, std::memory_order_release); }
  static void Add(Field& field, uint64_t change) { Put(field, Get(field) + change); }
  void BeginWrite() { version_.store(version_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
  void EndWrite() { version_.store(version_.load(std::memory_order_relaxed) + 1, std::memory_order_release); }
  void Save(uint64_t epoch);
  void Apply(const Delta& d);
  void SetLimit() { limit_ = std::min(Get(peak_), soft_limit_); }

  Field version_ = 0;
  Field in_use_ = 0, requested_ = 0, pending_ = 0, peak_ = 0, charged_ever_ = 0, count_ = 0, pending_count_ = 0;
  Field saved_ = 0;                  // in_use at the peak of saved_epoch
  Field saved_epoch_ = UINT64_MAX;   // none yet
  uint64_t granted_ = 0;             // sum of the budgets of all shards, as of their last drains
  uint64_t soft_limit_ = UINT64_MAX;
  uint64_t limit_ = 0;
};

struct SoftCap {
  Bytes cap;
  std::function<void(const SoftCapCrossing&)> on_crossing;
};

struct OwnerAccounts {
  explicit OwnerAccounts(OwnerId its_id) : id(its_id) {}
  const OwnerId id;
  Account total;
  std::array<std::atomic<Account*>, kRoleCount> roles = {};  // never freed before the ledger
  // The rest is for whoever holds the central mutex.
  uint32_t holders = 0;  // shards that may hold back changes of this owner
  LineageState lineage = LineageState::kNone;
  std::shared_ptr<const SoftCap> soft_cap;
  bool above_soft_cap = false;  // no shard may hold back then, so that the way down is seen too

  ~OwnerAccounts() {
    for (auto& role : roles) delete role.load(std::memory_order_relaxed);
  }
  [[nodiscard]] const Account* Find(Role role) const {
    return roles[static_cast<size_t>(role)].load(std::memory_order_acquire);
  }
};

// Owners' accounts by id; looked up without a lock. Part k has room for 64 * 2^k owners, and none ever moves.
class OwnerDirectory {
 public:
  OwnerDirectory() = default;
  ~OwnerDirectory();
  OwnerDirectory(const OwnerDirectory&) = delete;
  OwnerDirectory& operator=(const OwnerDirectory&) = delete;

  // Null if it was never charged.
  [[nodiscard]] OwnerAccounts* Find(OwnerId owner) const {
    const Place place(owner);
    const Slot* part = parts_[place.part].load(std::memory_order_acquire);
    return part == nullptr ? nullptr : part[place.offset].load(std::memory_order_acquire);
  }
  // One writer at a time: the central mutex.
  OwnerAccounts& FindOrMake(OwnerId owner);
  // Calls `visit` with all there are, by id.
  template <class Visit>
  void ForEach(Visit visit) const {
    for (uint32_t part = 0; part < kParts; ++part) {
      const Slot* slots = parts_[part].load(std::memory_order_acquire);
      for (uint64_t i = 0; slots != nullptr && i < PartSize(part); ++i) {
        if (OwnerAccounts* owner = slots[i].load(std::memory_order_acquire); owner != nullptr) visit(*owner);
      }
    }
  }

 private:
  using Slot = std::atomic<OwnerAccounts*>;
  static constexpr uint32_t kParts = 27;  // 64 * (2^27 - 1) >= 2^32 ids
  static constexpr uint64_t PartSize(uint32_t part) { return uint64_t{64} << part; }
  struct Place {
    explicit Place(OwnerId owner) {
      const uint64_t n = uint64_t{owner.value()} + 64;
      part = static_cast<uint32_t>(std::bit_width(n)) - 7;
      offset = n - PartSize(part);
    }
    uint32_t part;
    uint64_t offset;
  };
  std::array<std::atomic<Slot*>, kParts> parts_ = {};
};

}  // namespace gpuledger
