// Sites: a stack is looked up by its raw words without a lock; a new one gets an id, and its frames their places and names.
#include "gpuledger/sites.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "gpuledger/owner.h"
#include "modules.h"
#include "stack_native.h"
#include "stack_python.h"
#include "stack_table.h"

namespace gpuledger {
namespace {

StackTable& Table() {
  static auto& table = *new StackTable;  // sites are asked for after main()
  return table;
}

// Of this library or one of its ways in: no frame of the program's.
bool IsOurs(uint32_t module) {
  LoadedModule found;
  if (!ModuleById(module, &found)) return false;
  const std::string_view path = found.path;
  return path.substr(path.rfind('/') + 1).substr(0, 12) == "libgpuledger";
}

// Native frames of the interpreter give way to Python's: where its loop was entered stand the Python frames that ran in it.
class Merge {
 public:
  explicit Merge(const RawStack& raw) : raw_(raw) {
    if (raw.pythons > 0) interpreter_ = python::TheInterpreter();
    if (interpreter_.begin != 0) interpreter_module_ = PlaceOf(interpreter_.begin).module;
  }

  std::vector<SiteFrame> Frames() {
    const bool paired = Paired();
    bool ours = true;
    for (size_t i = 0; i < raw_.natives; ++i) {
      const CodePlace place = PlaceOf(raw_.native[i] - 1);  // the call, not what follows it
      if (place.module == 0) continue;
      if (ours && IsOurs(place.module)) continue;
      ours = false;
      if (place.module != interpreter_module_) {
        frames_.push_back({false, place.module, place.offset, "", "", 0});
      } else if (!paired) {
        AddPython(raw_.pythons);
      } else if (InLoop(raw_.native[i])) {
        AddPython(EndOfGroup());
      }
    }
    AddPython(raw_.pythons);
    return std::move(frames_);
  }

 private:
  [[nodiscard]] bool InLoop(uintptr_t address) const { return address - 1 - interpreter_.begin < interpreter_.end - interpreter_.begin; }
  [[nodiscard]] size_t EndOfGroup() const {
    size_t end = next_;
    while (end < raw_.pythons && !raw_.python[end++].entry) {
    }
    return end;
  }
  // Whether the loop's frames and the groups of Python frames are as many, as far as both were taken. Otherwise Python's come all
  // together: in an interpreter that does not say where it was entered.
  [[nodiscard]] bool Paired() const {
    const auto loops = static_cast<size_t>(std::count_if(raw_.native.begin(), raw_.native.begin() + static_cast<ptrdiff_t>(raw_.natives),
                                                         [this](uintptr_t address) { return InLoop(address); }));
    size_t groups = 0;
    for (size_t i = 0; i < raw_.pythons; ++i) groups += raw_.python[i].entry || i + 1 == raw_.pythons ? 1 : 0;
    if (loops < groups) return raw_.natives == RawStack::kMostNative;
    return loops == groups || raw_.pythons == RawStack::kMostPython;
  }
  void AddPython(size_t end) {
    for (; next_ < end; ++next_) {
      python::Name name = python::NameOf(raw_.python[next_]);
      frames_.push_back({true, 0, 0, std::move(name.function), std::move(name.file), name.line});
    }
  }

  const RawStack& raw_;
  python::Interpreter interpreter_;
  uint32_t interpreter_module_ = UINT32_MAX;
  size_t next_ = 0;  // Python frame
  std::vector<SiteFrame> frames_;
};

std::atomic<bool> take_native{false}, take_python{false};

[[gnu::always_inline]] inline void Take(RawStack& raw) noexcept {  // so that the stack begins with TakeSite's caller
  const bool native = take_native.load(std::memory_order_relaxed), python = take_python.load(std::memory_order_relaxed);
  if (native || !python) raw.natives = TakeReturnAddresses(raw.native.data(), raw.native.size());
  if (python || !native) raw.pythons = python::TakeFrames(raw.python.data(), raw.python.size());
}

[[gnu::noinline, gnu::cold]] SiteId Intern(const RawStack& raw, uint64_t hash) {
  return Table().Add(raw, hash, Merge(raw).Frames());
}

void LockForFork() {
  python::LockNamesForFork();
  LockModulesForFork();
  LockUnwindRulesForFork();
  Table().LockForFork();
}
void UnlockAfterFork() {
  Table().UnlockAfterFork();
  UnlockUnwindRulesAfterFork();
  UnlockModulesAfterFork();
  python::UnlockNamesAfterFork();
}

const bool at_load = [] {
  pthread_atfork(LockForFork, UnlockAfterFork, UnlockAfterFork);
  const char* const stacks = std::getenv("GPULEDGER_STACKS");
  const std::string_view what = stacks == nullptr ? "none" : stacks;
  if (what == "native" || what == "python" || what == "all") SetStacks(what != "python", what != "native");
  return true;
}();

}  // namespace

void SetStacks(bool native, bool python) {
  take_native.store(native, std::memory_order_relaxed);
  take_python.store(python, std::memory_order_relaxed);
  if (python) python::Prepare();
  SetSiteSource(native || python ? &TakeSite : nullptr);
}

[[gnu::noinline]] SiteId TakeSite() noexcept {
  RawStack raw;
  Take(raw);
  if (raw.natives + raw.pythons == 0) return kNoSite;
  uint64_t hash = raw.Hash();
  if (const Stack* const known = Table().Find(raw, hash)) return known->id;
  try {
    if (SomethingWasUnloaded()) {  // and something else may be in its place: then its rules led astray
      ForgetUnwindRules();
      Take(raw);
      hash = raw.Hash();
    }
    return Intern(raw, hash);
  } catch (...) {  // no host memory
    return kNoSite;
  }
}

bool FramesOf(SiteId site, std::vector<SiteFrame>* frames) {
  const Stack* const stack = Table().ById(site);
  if (stack == nullptr) return false;
  *frames = stack->frames;
  return true;
}

}  // namespace gpuledger
