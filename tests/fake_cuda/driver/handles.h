// Objects that a program knows by a pointer. A handle is checked before it is followed, and one that died is remembered
// for a while, so that a use of it is told from a use of nonsense.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>

namespace fake_cuda {

template <typename T>
class Handles {
 public:
  T* Add(std::unique_ptr<T> object) {
    T* const handle = object.get();
    live_.emplace(handle, std::move(object));
    return handle;
  }

  T* Find(const void* handle) const {
    const auto found = live_.find(handle);
    return found == live_.end() ? nullptr : found->second.get();
  }

  bool Died(const void* handle) const {
    for (const std::unique_ptr<T>& object : dead_) {
      if (object.get() == handle) return true;
    }
    return false;
  }

  void Remove(const T* object) {
    const auto found = live_.find(object);
    if (found == live_.end()) return;
    dead_.push_back(std::move(found->second));  // keeps the address from being used again at once
    live_.erase(found);
    if (dead_.size() > kRemembered) dead_.pop_front();
  }

  const std::unordered_map<const void*, std::unique_ptr<T>>& live() const { return live_; }

 private:
  static constexpr size_t kRemembered = 4096;
  std::unordered_map<const void*, std::unique_ptr<T>> live_;
  std::deque<std::unique_ptr<T>> dead_;
};

}  // namespace fake_cuda
