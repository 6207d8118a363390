// The model test at scale: what an episode's threads share (World), and one thread's part of it (Lane): it does operations
// on the allocator and on a naive map, and compares. See scale_model_sweep.cc for the full comparison.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/host_upstream.h"
#include "scale_model_operation.h"
#include "scale_model_upstream.h"

namespace gpuledger::scale {

inline constexpr int kOwners = 4;
inline constexpr int kPayers = 3 * kOwners;  // three roles each
inline constexpr int kPrivatePools = 3;
inline constexpr int kSharedStreams = 3;     // everybody's; the next ones are a lane's own, kOwnStreams each
inline constexpr int kOwnStreams = 2;
inline constexpr uint8_t kPerThread = 62, kLegacy = 63;
inline const DeviceId kDevice{0};
Stream StreamAt(uint8_t i);
Payer PayerAt(int i);

// Of a stream that is gone (retired, or its thread is over) and may come back by the same number, the blocks of before.
struct User {
  StreamNumber stream = 0;
  uint32_t generation = 0;
};

struct Block {
  uint64_t address = 0, requested = 0, charged = 0;
  uint64_t stamp = 0;  // what its pattern is made of
  uint64_t born = 0;   // by the lane's clock
  uint64_t pool = 0;   // 0: the shared ones
  User home;
  std::vector<User> others;
  uint8_t payer = 0;
  int owner_lane = -1;  // the lane whose own stream it is of; -1: everybody's
};

// Freed, and its granules claimed until the streams that used it are done.
struct PendingBlock {
  uint64_t size = 0;
  std::vector<std::pair<StreamNumber, uint64_t>> work;
};

class Lane;

class World {
 public:
  World(const Scene& its_scene, bool at_once);
  ~World();

  [[nodiscard]] bool Released(uint64_t pool);
  // Notes the first thing that went wrong.
  void Wrong(const std::string& what);
  [[nodiscard]] bool failed() const { return failed_.load(std::memory_order_acquire); }
  std::string failure();
  // Lets go of those pending blocks that the ledger does not have any more.
  void ForgetCompleted(const std::vector<LiveAllocation>& live);
  // All equations, every block and charge; no thread is inside the allocator. Steps with it: nothing.
  void Sweep(const std::vector<Lane*>& lanes);
  // Everything goes back.
  void Finish(const std::vector<Lane*>& lanes);
  // Whether its streams are known to be done, or to come before what `after` does from now on.
  [[nodiscard]] bool Done(const PendingBlock& block, StreamNumber after);
  // Lets go of the granules of those pending blocks that overlap and are done in that sense; true if there were any.
  bool ForgetDone(uint64_t begin, uint64_t size, StreamNumber after = kNoStream);
  void StartThread();  // of a thread that has just begun
  void EndThread();    // of one that queues no more work

  const Scene scene;
  const bool at_once;  // several lanes at a time: what depends on the order of all changes is checked within bounds
  Claims claims;
  Timeline timeline;
  std::unique_ptr<Upstream> inner;
  std::unique_ptr<StrictUpstream> upstream;
  std::unique_ptr<CachingAllocator> allocator;
  const bool host;

  std::atomic<bool> faulty = false;
  std::atomic<uint64_t> stamps = 0;
  std::atomic<uint64_t> private_pools[kPrivatePools] = {};  // ids; 0: none
  std::atomic<uint32_t> generations[kMostStreams] = {};
  std::atomic<StreamNumber> next_thread_stream = kOrdinaryStreams;

  // Below and above what is in use at any time: peak of the first <= the ledger's peak <= peak of the second.
  std::atomic<uint64_t> lower = 0, upper = 0, lower_peak = 0, upper_peak = 0;

  std::mutex mutex;  // guards what follows
  std::map<uint64_t, PendingBlock> pending;     // by address; no two overlap
  std::map<uint64_t, uint64_t> let_go;           // sizes of those known to be done: the ledger may have them a little longer
  std::set<uint64_t> released_pools;
  std::vector<CachingAllocator::CallbackId> callbacks;
  std::vector<uint64_t> soft_caps = std::vector<uint64_t>(kOwners);
  std::shared_mutex pools_mutex;  // held alone while a private pool goes, and shared while one is used
  std::mutex cap_mutex;
  uint64_t cap;

  std::atomic<uint64_t> crossings_told = 0;
  std::atomic<uint64_t> requests = 0, refusals = 0, foreign_frees = 0, relieved = 0, births = 0, sweeps = 0;

 private:
  std::atomic<bool> failed_ = false;
  std::mutex failure_mutex_;
  std::string failure_;
};

class Lane {
 public:
  Lane(World& its_world, int its_number);

  void Do(const Operation& operation);
  // Takes in what other lanes have given: some is freed at once.
  void TakeIn(Random& random);
  // Under memory pressure, inside a request of this lane: frees up to `most` blocks; true if any.
  bool Relieve(uint64_t most);

  // For whoever makes operations up: a slot in use, or a vacant one.
  [[nodiscard]] size_t in_use_slots() const { return taken_.size(); }
  [[nodiscard]] uint32_t SomeTaken(Random& random) const { return taken_[random.below(taken_.size())]; }
  [[nodiscard]] uint32_t SomeVacant(Random& random) const { return vacant_[random.below(vacant_.size())]; }
  [[nodiscard]] bool full() const { return vacant_.empty(); }

  World& world;
  const int number;
  std::vector<Lane*> others;  // that blocks are given to
  std::vector<Block> slots;
  std::mutex inbox_mutex;
  std::vector<Block> inbox;
  std::atomic<bool> inbox_full = false;
  std::shared_mutex order;  // held alone while a stream of this lane goes, and shared while others free blocks of one

  // Exact where one lane at a time runs.
  uint64_t in_use = 0, peak = 0, clock = 0, peak_time = 0;
  uint64_t by_payer[kPayers] = {}, payer_peak[kPayers] = {}, at_peak[kPayers] = {};
  uint64_t crossings_due = 0;

 private:
  void Allocate(const Operation& o);
  void Refused(const Operation& o, const absl::Status& status);
  void Free(Block block);
  void UseOn(const Operation& o);
  void Transfer(const Operation& o);
  void Refuse(const Operation& o);
  void Retire(const Operation& o);
  void SetCap(uint64_t cap);
  void SetSoftCap(const Operation& o);
  void CheckUnchanged(std::string_view after);
  void Charge(int payer, uint64_t charged, bool new_to_owner = true);
  void Credit(int payer, uint64_t charged);
  void NoteWork(const Block& block);
  uint64_t WorkOf(User user);
  bool Claim(const Block& block, uint64_t pool);
  Block Take(uint32_t slot);
  void Put(uint32_t slot, Block block);
  [[nodiscard]] bool taken(uint32_t slot) const { return place_[slot] < taken_.size() && taken_[place_[slot]] == slot; }

  std::vector<uint32_t> taken_, vacant_, place_;
  uint32_t busy_ = ~uint32_t{0};  // slot of the request that is under way
};

// Fills a block with words that only it has, or some of them where it is large; and looks whether they are still there.
void WritePattern(const Block& block);
bool PatternHolds(const Block& block);

}  // namespace gpuledger::scale
