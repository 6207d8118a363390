// tests/allocator/naive_ledger.h - a ledger that applies every change at once, to plain maps: what the real one must equal.
#pragma once

#include <algorithm>
#include <map>
#include <utility>

#include "gpuledger/ledger.h"

namespace gpuledger {

class NaiveLedger {
 public:
  using Key = std::pair<uint32_t, Role>;
  struct Charged {
    Key payer;
    Bytes charged, requested;
    bool pending = false;
  };

  explicit NaiveLedger(std::map<uint32_t, Bytes> soft_caps) : soft_caps_(std::move(soft_caps)) {}

  void Debit(uint64_t id, Key payer, Bytes charged, Bytes requested) {
    const Charged charge{payer, charged, requested};
    live_[id] = charge;
    for (Usage* u : UsagesOf(payer)) Charge(*u, charge);
    NoteCap(payer.first);
    if (device_.in_use > device_peak_) {
      device_peak_ = device_.in_use;
      at_peak_.clear();
      for (const auto& [other, c] : live_) {
        if (!c.pending) at_peak_[other] = c;
      }
    }
  }
  void MakePending(uint64_t id) {
    Charged& charge = live_.at(id);
    for (Usage* u : UsagesOf(charge.payer)) {
      Credit(*u, charge);
      u->pending += charge.charged, u->pending_count += 1;
    }
    charge.pending = true;
    NoteCap(charge.payer.first);
  }
  void Complete(uint64_t id) {
    const Charged charge = live_.at(id);
    for (Usage* u : UsagesOf(charge.payer)) {
      if (charge.pending) {
        u->pending -= charge.charged, u->pending_count -= 1;
      } else {
        Credit(*u, charge);
      }
    }
    live_.erase(id);
    NoteCap(charge.payer.first);
  }
  void Transfer(uint64_t id, Key to) {
    Charged& charge = live_.at(id);
    const auto from_usages = UsagesOf(charge.payer), to_usages = UsagesOf(to);
    for (size_t i = 0; i < from_usages.size(); ++i) {
      Usage &from = *from_usages[i], &into = *to_usages[i];
      if (&from == &into) continue;
      if (charge.pending) {
        from.pending -= charge.charged, from.pending_count -= 1;
        into.pending += charge.charged, into.pending_count += 1;
        into.charged_ever += charge.charged;
      } else {
        Credit(from, charge);
        Charge(into, charge);
      }
    }
    NoteCap(charge.payer.first);
    NoteCap(to.first);
    charge.payer = to;
    if (const auto found = at_peak_.find(id); found != at_peak_.end()) found->second.payer = to;
  }
  void ResetPeak() {
    device_peak_ = device_.in_use;
    device_.peak = device_.in_use;
    for (auto* map : {&owners_}) {
      for (auto& [key, u] : *map) u.peak = u.in_use;
    }
    for (auto& [key, u] : roles_) u.peak = u.in_use;
    for (auto& [key, u] : lines_) u.peak = u.in_use;
    at_peak_.clear();
    for (const auto& [id, c] : live_) {
      if (!c.pending) at_peak_[id] = c;
    }
  }

  Usage device() { return With(device_, [](Key) { return true; }); }
  Usage owner(uint32_t id) { return With(owners_[id], [id](Key key) { return key.first == id; }); }
  Usage role(Role role) { return With(roles_[role], [role](Key key) { return key.second == role; }); }
  Usage line(Key line) { return With(lines_[line], [line](Key key) { return key == line; }); }
  const std::map<uint64_t, Charged>& live() const { return live_; }
  uint64_t crossings(uint32_t owner) { return crossings_[owner]; }

 private:
  std::array<Usage*, 4> UsagesOf(Key payer) { return {&device_, &owners_[payer.first], &roles_[payer.second], &lines_[payer]}; }
  static void Charge(Usage& u, const Charged& c) {
    u.in_use += c.charged, u.requested += c.requested, u.charged_ever += c.charged, u.count += 1;
    u.peak = std::max(u.peak, u.in_use);
  }
  static void Credit(Usage& u, const Charged& c) { u.in_use -= c.charged, u.requested -= c.requested, u.count -= 1; }
  void NoteCap(uint32_t owner) {
    const auto cap = soft_caps_.find(owner);
    if (cap == soft_caps_.end()) return;
    const bool now = owners_[owner].in_use > cap->second;
    crossings_[owner] += now && !above_[owner];
    above_[owner] = now;
  }
  template <class Match>
  Usage With(Usage usage, Match match) {
    usage.at_device_peak = Bytes();
    for (const auto& [id, c] : at_peak_) {
      if (match(c.payer)) usage.at_device_peak += c.charged;
    }
    return usage;
  }

  const std::map<uint32_t, Bytes> soft_caps_;
  std::map<uint32_t, bool> above_;
  std::map<uint32_t, uint64_t> crossings_;
  std::map<uint64_t, Charged> live_, at_peak_;
  Usage device_;
  Bytes device_peak_;
  std::map<uint32_t, Usage> owners_;
  std::map<Role, Usage> roles_;
  std::map<Key, Usage> lines_;
};

}  // namespace gpuledger
