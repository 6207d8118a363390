// The way into the library: what every exported function does before and after its own work.
//
// One mutex guards the whole state; it is held while an implementation runs, unless that asks for nothing of it. What calls back into the program (host
// functions, destructors of user objects) does so inside `Unlocked`.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>

#include "driver_api.h"
#include "symbol.h"

namespace fake_cuda {

// One call of one thread: refuses it if the library is not initialised or the process is a forked child, if the capture
// rules forbid it, or if a fault is due.
class Call {
 public:
  explicit Call(const Symbol& symbol);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool refused() const { return result_ != CUDA_SUCCESS; }
  CUresult result() const { return result_; }
  const Symbol& symbol() const { return symbol_; }
  bool traced() const;
  void Trace(CUresult result, const std::string& arguments);

  static Call* current();  // of this thread, null outside

 private:
  friend class Unlocked;
  CUresult Admit();

  const Symbol& symbol_;
  Call* const outer_;
  std::unique_lock<std::mutex> lock_;
  CUresult result_ = CUDA_SUCCESS;
};

// While one lives, the thread's call does not hold the mutex.
class Unlocked {
 public:
  Unlocked();
  ~Unlocked();
};

// Makes the library usable: options, devices. Called by cuInit with the mutex held.
CUresult Initialise();
bool Initialised();

// Whether programs know a function by this name: "cuMemAlloc". Defined in lookup_calls.cc.
bool KnownFunction(std::string_view base);

// Calls since initialisation by the name without suffix, and faults beside those of the environment, counted from now.
uint64_t CallCount(const char* base);
bool AddFaults(const char* text);
void ClearFaults();

// An argument as a trace shows it: numbers as they are, addresses in hexadecimal, and what a call stored through a
// pointer to a number or a handle behind an arrow.
std::string Shown(uint64_t value);
std::string ShownAddress(const void* address);

template <typename T>
std::string ShownArgument(const T& argument, bool succeeded) {
  if constexpr (std::is_enum_v<T> || std::is_integral_v<T>) {
    return Shown(uint64_t(argument));
  } else if constexpr (std::is_pointer_v<T>) {
    using Target = std::remove_pointer_t<T>;
    if constexpr (std::is_same_v<Target, CUdeviceptr> || std::is_same_v<Target, unsigned long>) {
      if (succeeded && argument != nullptr) return "->" + Shown(*argument);
    } else if constexpr (std::is_pointer_v<Target> && !std::is_const_v<Target>) {
      if (succeeded && argument != nullptr) return "->" + ShownAddress(*argument);
    }
    return ShownAddress(reinterpret_cast<const void*>(argument));
  } else {
    return "{}";
  }
}

template <typename Function, typename... Arguments>
CUresult Enter(const Symbol& symbol, Function&& function, const Arguments&... arguments) {
  Call call(symbol);
  const CUresult result = call.refused() ? call.result() : function();
  if (call.traced()) {
    std::string text;
    ((text += (text.empty() ? "" : " ") + ShownArgument(arguments, result == CUDA_SUCCESS)), ...);
    call.Trace(result, text);
  }
  return result;
}

}  // namespace fake_cuda
