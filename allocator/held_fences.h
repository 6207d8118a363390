// allocator/held_fences.h - the fences of FakeUpstream that have not passed yet, in the order in which streams would pass them.
// Not thread-safe.
#pragma once

#include <deque>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/types.h"

namespace gpuledger {

class HeldFences {
 public:
  struct Held {
    FenceId fence;
    Stream stream;
  };

  // Requires: ids grow.
  void Add(Held held) {
    Queue& queue = queues_[held.stream];
    queue.held.push_back({held.fence, std::exchange(queue.after, {})});
  }

  // What is recorded on `stream` from now on passes after `held`.
  void MakeWait(Stream stream, Held held) {
    if (!Passed(held)) queues_[stream].after.push_back(held);
  }

  // A queue is in the order of ids: what lies before its oldest entry has passed.
  [[nodiscard]] bool Passed(Held held) const {
    const auto queue = queues_.find(held.stream);
    return queue == queues_.end() || queue->second.held.empty() || held.fence < queue->second.held.front().fence;
  }

  // Passes `last` and all that is ahead of it, on its stream and on those that its stream waits for.
  void Pass(Held last) {
    std::vector<Held> todo{last};
    while (!todo.empty()) {
      const Held next = todo.back();
      todo.pop_back();
      const auto queue = queues_.find(next.stream);
      if (queue == queues_.end()) continue;
      std::deque<Entry>& held = queue->second.held;
      for (; !held.empty() && held.front().fence <= next.fence; held.pop_front()) {
        todo.insert(todo.end(), held.front().after.begin(), held.front().after.end());
      }
    }
  }

  void PassStream(Stream stream) {
    const auto queue = queues_.find(stream);
    if (queue != queues_.end() && !queue->second.held.empty()) Pass({queue->second.held.back().fence, stream});
  }

  void PassAll() { queues_.clear(); }

 private:
  struct Entry {
    FenceId fence;
    std::vector<Held> after;  // fences of other streams that this stream waits for before this one
  };
  struct Queue {
    std::deque<Entry> held;   // oldest first
    std::vector<Held> after;  // waits since the last entry: they go to the next one
  };
  absl::flat_hash_map<Stream, Queue> queues_;
};

}  // namespace gpuledger
