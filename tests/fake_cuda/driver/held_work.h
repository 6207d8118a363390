// Marks: how far a stream has come. All work is done at once, so a mark is finished when it is made, unless events are
// held; then it, and what comes after it, stays unfinished until it is released or the host waits for it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

namespace fake_cuda {

class MappedTicket;

struct Mark {
  bool finished = false;
  std::vector<std::shared_ptr<Mark>> after;  // what comes before it
  std::shared_ptr<MappedTicket> shared;      // where other processes see it
  uint64_t sequence = 0;                     // in `shared`
  bool foreign = false;                      // another process finishes it

  bool Done() const;
};

using Marks = std::vector<std::shared_ptr<Mark>>;

class HeldWork {
 public:
  bool holding() const { return holding_; }
  void Hold() { holding_ = true; }

  // A mark behind `before`, unfinished if work is held or any of those is unfinished; null if there is nothing to hold.
  std::shared_ptr<Mark> Make(const Marks& before);

  // Finishes a mark and what is before it, as waiting for it does. False: another process has to finish some of it.
  bool Finish(const std::shared_ptr<Mark>& mark);

  // Finishes the `count` oldest.
  void Release(uint64_t count);
  void ReleaseAll();  // and holds no more

 private:
  void Prune();
  bool holding_ = false;
  std::deque<std::weak_ptr<Mark>> unfinished_;
};

}  // namespace fake_cuda
