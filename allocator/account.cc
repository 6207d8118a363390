#include "account.h"

#include <sched.h>

namespace gpuledger {

void Account::Save(uint64_t epoch) {
  if (Get(saved_epoch_) == epoch) return;
  Put(saved_, Get(in_use_));
  Put(saved_epoch_, epoch);
}

void Account::Apply(const Delta& d) {
  if (d.in_use != 0) Add(in_use_, d.in_use);
  if (d.requested != 0) Add(requested_, d.requested);
  if (d.pending != 0) Add(pending_, d.pending);
  if (d.charged_ever != 0) Put(charged_ever_, (Bytes(Get(charged_ever_)) + Bytes(d.charged_ever)).count());
  if (d.count != 0) Add(count_, d.count);
  if (d.pending_count != 0) Add(pending_count_, d.pending_count);
}

bool Account::Change(const Delta& d, uint64_t epoch) {
  BeginWrite();
  Save(epoch);
  Apply(d);
  const uint64_t reach = Get(in_use_) + granted_;
  const bool rose = reach > Get(peak_);
  if (rose) {
    if (granted_ != 0) Die("the ledger: a new peak while shards hold changes back");
    Put(peak_, reach);
    SetLimit();
  }
  EndWrite();
  return rose;
}

void Account::Drain(const Delta& d, uint64_t epoch) {
  BeginWrite();
  Save(epoch);
  Apply(d);
  granted_ -= d.in_use;
  EndWrite();
}

void Account::ResetPeak() {
  BeginWrite();
  Put(peak_, Get(in_use_));
  SetLimit();
  EndWrite();
}

void Account::MoveSaved(uint64_t change, uint64_t epoch) {
  BeginWrite();
  Save(epoch);
  Add(saved_, change);
  EndWrite();
}

Usage Account::Read(const Delta& own, const std::atomic<uint64_t>& epoch) const {
  const auto not_below_zero = [](uint64_t value) { return static_cast<int64_t>(value) < 0 ? 0 : value; };
  for (int tries = 0;; ++tries) {
    if (tries > 64) sched_yield();  // whoever writes was interrupted
    const uint64_t now = Get(epoch), version = Get(version_);
    if (version % 2 != 0) continue;
    const uint64_t in_use = Get(in_use_), requested = Get(requested_), pending = Get(pending_), peak = Get(peak_);
    const uint64_t ever = Get(charged_ever_), count = Get(count_), pending_count = Get(pending_count_);
    const uint64_t at_peak = Get(saved_epoch_) == now ? Get(saved_) : in_use;
    if (version_.load(std::memory_order_relaxed) != version || epoch.load(std::memory_order_relaxed) != now) continue;
    const uint64_t sum = in_use + own.in_use;  // above the peak only if it wrapped
    return {Bytes(sum > peak ? 0 : sum),
            Bytes(not_below_zero(requested + own.requested)),
            Bytes(not_below_zero(pending + own.pending)),
            Bytes(peak),
            Bytes(at_peak),
            Bytes(ever + own.charged_ever),
            not_below_zero(count + own.count),
            not_below_zero(pending_count + own.pending_count)};
  }
}

OwnerDirectory::~OwnerDirectory() {
  ForEach([](OwnerAccounts& owner) { delete &owner; });
  for (auto& part : parts_) delete[] part.load(std::memory_order_relaxed);
}

OwnerAccounts& OwnerDirectory::FindOrMake(OwnerId owner) {
  const Place place(owner);
  Slot* part = parts_[place.part].load(std::memory_order_relaxed);
  if (part == nullptr) {
    part = new Slot[PartSize(place.part)]();
    parts_[place.part].store(part, std::memory_order_release);
  }
  OwnerAccounts* accounts = part[place.offset].load(std::memory_order_relaxed);
  if (accounts == nullptr) {
    accounts = new OwnerAccounts(owner);
    part[place.offset].store(accounts, std::memory_order_release);
  }
  return *accounts;
}

}  // namespace gpuledger
