// tracing/aggregate.h - the entries of a trace, in order, to what is live, what was, and what a verdict needs.
//
// Memory grows with what is live and with owners and stacks, not with the trace.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "gpuledger/leak_classes.h"
#include "gpuledger/trace.h"
#include "growth.h"

namespace gpuledger {

class Aggregate {
 public:
  struct Live {
    Bytes requested, charged;
    TimePoint allocated{0};
    uint64_t index = 0;  // how many entries came before it
    Payer payer;
    SiteId site = kNoSite;
    ThreadId thread{0};
    DeviceId device{0};
    uint32_t ledger = 0;
    bool pending = false;
  };
  struct Fact {
    FactKind kind;
    uint64_t value;
    std::string text;
    uint64_t index;
  };
  // Of a ledger: its totals, and who was live at its peak. An account saves its value at its first change after a new peak, so
  // that the value at the peak is the saved one if it has changed since, else the present one.
  struct Account {
    uint64_t in_use = 0, count = 0;
    uint64_t saved = 0, saved_count = 0, saved_epoch = 0;
  };
  struct Device {
    uint64_t in_use = 0, pending = 0, reserved = 0, rounding = 0, peak = 0, epoch = 0;
    bool peak_is_older = false;  // it is the snapshot's, with these shares
    std::vector<std::pair<std::pair<OwnerId, Role>, uint64_t>> older_shares;
    absl::flat_hash_map<uint64_t, Account> accounts;  // by owner and role
  };
  struct Share {
    OwnerId owner{0};
    Role role = Role::kOther;
    uint64_t bytes = 0, count = 0;
  };

  void Add(const TraceEntry& entry);

  // More than any machine has. Sums stop there, so that none overflows whatever a damaged trace says.
  static constexpr uint64_t kMostBytes = uint64_t{1} << 62;
  static void Put(uint64_t& to, uint64_t amount);

  [[nodiscard]] uint64_t entries() const { return entries_; }
  [[nodiscard]] uint64_t allocations() const { return allocations_; }
  [[nodiscard]] const absl::flat_hash_map<uint64_t, Live>& live() const { return live_; }
  [[nodiscard]] const absl::flat_hash_map<uint32_t, Device>& devices() const { return devices_; }
  [[nodiscard]] std::vector<Share> AtPeak() const;  // of all ledgers, each at its own peak; largest first
  // How many entries there had been when the ledger's peak was reached.
  [[nodiscard]] const absl::flat_hash_map<uint32_t, uint64_t>& peak_indices() const { return peak_indices_; }
  [[nodiscard]] const Growth& growth() const { return growth_; }

  // What a verdict is about: the blocks of the last settle, or what is live now; with what is known of them.
  struct Judged {
    std::vector<LiveBlock> blocks;
    std::vector<uint64_t> ages_ns;
    VerdictContext context;
    std::string undecided_why;
    uint64_t in_use = 0, pending = 0, reserved = 0, rounding = 0;
  };
  [[nodiscard]] Judged Judge() const;

 private:
  struct Settling {
    bool begun = false, completed = false, ended = false;
    TimePoint time{0};
    absl::flat_hash_map<uint64_t, LiveBlock> blocks;
    std::vector<uint64_t> went;  // since the last step
    std::map<uint64_t, std::vector<Fact>> facts;
    VerdictContext context;
    uint64_t began_at = 0, in_use = 0, pending = 0, reserved = 0, rounding = 0;
  };

  void AddRecord(const Record& record);
  void Allocate(const Record& record, bool pending);
  void Request(uint64_t id);
  void Complete(uint64_t id);
  void NoteGone(uint64_t id);
  void Charge(const Live& live, bool more);
  void Settle(SettleStep step, TimePoint time);
  void FillContext(VerdictContext& context) const;
  static LiveBlock BlockOf(uint64_t id, const Live& live);
  static void Learn(const std::vector<Fact>& facts, uint64_t since, LiveBlock& block);

  uint64_t entries_ = 0, allocations_ = 0;
  uint64_t held_ = 0;  // charged, of all that is live
  TimePoint now_{0};
  absl::flat_hash_map<uint64_t, Live> live_;
  // Freed by one thread at the very time at which another allocated them, and read before that.
  absl::flat_hash_set<uint64_t> early_;
  static constexpr size_t kMostEarly = 1 << 16;
  absl::flat_hash_map<uint32_t, Device> devices_;
  absl::flat_hash_map<uint32_t, uint64_t> peak_indices_;
  absl::flat_hash_map<uint64_t, std::vector<Fact>> facts_;
  absl::flat_hash_map<uint32_t, bool> lineages_;  // by owner: whether it is closed
  absl::flat_hash_set<uint32_t> ended_scopes_;
  Growth growth_;
  Settling settling_;
  bool program_ended_ = false;
};

}  // namespace gpuledger
