#include "held_work.h"

#include <algorithm>

#include "device_memory.h"

namespace fake_cuda {

bool Mark::Done() const { return foreign ? (*shared)->finished.load() >= sequence : finished; }

std::shared_ptr<Mark> HeldWork::Make(const Marks& before) {
  auto mark = std::make_shared<Mark>();
  for (const std::shared_ptr<Mark>& other : before) {
    if (!other->Done()) mark->after.push_back(other);
  }
  if (!holding_ && mark->after.empty()) return nullptr;
  unfinished_.push_back(mark);
  return mark;
}

bool HeldWork::Finish(const std::shared_ptr<Mark>& mark) {
  Marks open = {mark};  // a stack, since a chain of marks may be long
  while (!open.empty()) {
    const std::shared_ptr<Mark> top = open.back();
    if (top->Done()) {
      open.pop_back();
      continue;
    }
    if (top->foreign) return false;
    if (!top->after.empty()) {
      open.push_back(std::move(top->after.back()));
      top->after.pop_back();
      if (!open.back()->Done() && open.back()->foreign) {
        top->after.push_back(open.back());  // still to wait for
        return false;
      }
      continue;
    }
    top->finished = true;
    if (top->shared != nullptr) {
      std::atomic<uint64_t>& finished = (*top->shared)->finished;
      finished.store(std::max(finished.load(), top->sequence));
    }
  }
  return true;
}

void HeldWork::Prune() {
  std::erase_if(unfinished_, [](const std::weak_ptr<Mark>& entry) {
    const std::shared_ptr<Mark> mark = entry.lock();
    return mark == nullptr || mark->Done();
  });
}

void HeldWork::Release(uint64_t count) {
  Prune();
  for (; count > 0 && !unfinished_.empty(); --count) {
    if (const std::shared_ptr<Mark> mark = unfinished_.front().lock()) Finish(mark);
    unfinished_.pop_front();
  }
}

void HeldWork::ReleaseAll() {
  holding_ = false;
  Release(unfinished_.size());
}

}  // namespace fake_cuda
