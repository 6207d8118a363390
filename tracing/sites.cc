// Sites: a stack is looked up by its raw words without a lock; a new one gets an id, and its frames their places and names.
#include "gpuledger/sites.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "gpuledger/owner.h"
#include "modules.h"
#include "stack_native.h"
#include "stack_python.h"

namespace gpuledger {
namespace {

constexpr size_t kMostNative = kMostNativeFrames, kMostPython = 48;
constexpr uint32_t kStackBit = 1u << 31;

// What a stack is, as it was found: return addresses, then Python frames.
struct RawStack {
  std::array<uintptr_t, kMostNative> native;
  std::array<python::Frame, kMostPython> python;
  size_t natives = 0, pythons = 0;

  [[nodiscard]] uint64_t Hash() const {
    uint64_t hash = natives * 64 + pythons;
    const auto mix = [&hash](uint64_t word) {
      hash = (hash ^ word) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 32;
    };
    for (size_t i = 0; i < natives; ++i) mix(native[i]);
    for (size_t i = 0; i < pythons; ++i) mix(reinterpret_cast<uintptr_t>(python[i].code)), mix(static_cast<uint32_t>(python[i].at));
    return hash;
  }
};

// Immutable once it can be found.
struct Stack {
  uint64_t hash;
  SiteId id{0};
  Stack* next = nullptr;
  std::vector<uintptr_t> native;
  std::vector<python::Frame> python;
  std::vector<SiteFrame> frames;

  [[nodiscard]] bool Is(const RawStack& raw, uint64_t its_hash) const {
    return hash == its_hash && native.size() == raw.natives && python.size() == raw.pythons &&
           std::memcmp(native.data(), raw.native.data(), raw.natives * sizeof(uintptr_t)) == 0 &&
           std::equal(python.begin(), python.end(), raw.python.begin(),
                      [](const python::Frame& a, const python::Frame& b) { return a.code == b.code && a.at == b.at; });
  }
};

class StackTable {
 public:
  Stack* Find(const RawStack& raw, uint64_t hash) const {
    for (Stack* s = buckets_[hash % kBuckets].load(std::memory_order_acquire); s != nullptr; s = s->next) {
      if (s->Is(raw, hash)) return s;
    }
    return nullptr;
  }
  // Two threads may add the same stack at once: then it has two ids, which is no harm.
  SiteId Add(std::unique_ptr<Stack> stack) {
    const uint32_t number = next_.fetch_add(1, std::memory_order_relaxed);
    if (number >= kLeaves * kLeaf) return kNoSite;
    stack->id = SiteId(number | kStackBit);
    Leaf* leaf = by_id_[number / kLeaf].load(std::memory_order_acquire);
    if (leaf == nullptr) {
      auto* const fresh = new Leaf{};
      if (by_id_[number / kLeaf].compare_exchange_strong(leaf, fresh)) leaf = fresh; else delete fresh;
    }
    Stack* const kept = stack.release();
    (*leaf)[number % kLeaf].store(kept, std::memory_order_release);
    std::atomic<Stack*>& bucket = buckets_[kept->hash % kBuckets];
    kept->next = bucket.load(std::memory_order_relaxed);
    while (!bucket.compare_exchange_weak(kept->next, kept, std::memory_order_acq_rel)) {
    }
    return kept->id;
  }
  [[nodiscard]] const Stack* ById(SiteId site) const {
    const uint32_t number = site.value() & ~kStackBit;
    if ((site.value() & kStackBit) == 0 || number >= kLeaves * kLeaf) return nullptr;
    const Leaf* const leaf = by_id_[number / kLeaf].load(std::memory_order_acquire);
    return leaf == nullptr ? nullptr : (*leaf)[number % kLeaf].load(std::memory_order_acquire);
  }

 private:
  static constexpr size_t kBuckets = 1 << 16, kLeaves = 1 << 14, kLeaf = 1 << 12;
  using Leaf = std::array<std::atomic<Stack*>, kLeaf>;
  std::array<std::atomic<Stack*>, kBuckets> buckets_{};
  std::array<std::atomic<Leaf*>, kLeaves> by_id_{};
  std::atomic<uint32_t> next_{1};
};

StackTable& Table() {
  static auto& table = *new StackTable;  // sites are asked for after main()
  return table;
}

// Native frames down to the interpreter, the Python frames in its place, and what called the interpreter.
std::vector<SiteFrame> Merged(const RawStack& raw) {
  const uint32_t own = PlaceOf(reinterpret_cast<uintptr_t>(&Table)).module;
  const uintptr_t interpreter_address = raw.pythons == 0 ? 0 : python::InterpreterAddress();
  const uint32_t interpreter = interpreter_address == 0 ? 0 : PlaceOf(interpreter_address).module;
  std::vector<SiteFrame> frames;
  bool python_done = raw.pythons == 0, past_own = false;
  const auto add_python = [&] {
    for (size_t i = 0; i < raw.pythons; ++i) {
      python::Name name = python::NameOf(raw.python[i]);
      frames.push_back({true, 0, 0, std::move(name.function), std::move(name.file), name.line});
    }
    python_done = true;
  };
  for (size_t i = 0; i < raw.natives; ++i) {
    const CodePlace place = PlaceOf(raw.native[i] - 1);  // the call, not what follows it
    if (place.module == own && !past_own) continue;
    past_own = true;
    if (interpreter != 0 && place.module == interpreter) {
      if (!python_done) add_python();
      continue;
    }
    if (place.module != 0) frames.push_back({false, place.module, place.offset, "", "", 0});
  }
  if (!python_done) add_python();
  return frames;
}

std::atomic<bool> take_native{false}, take_python{false};

SiteId SourceOfWaysIn() noexcept { return TakeSite(); }

const bool by_environment = [] {
  const char* const stacks = std::getenv("GPULEDGER_STACKS");
  const std::string_view what = stacks == nullptr ? "none" : stacks;
  if (what == "native" || what == "python" || what == "all") SetStacks(what != "python", what != "native");
  return true;
}();

}  // namespace

void SetStacks(bool native, bool python) {
  take_native.store(native, std::memory_order_relaxed);
  take_python.store(python, std::memory_order_relaxed);
  SetSiteSource(native || python ? &SourceOfWaysIn : nullptr);
}

SiteId TakeSite() noexcept {
  RawStack raw;
  const bool native = take_native.load(std::memory_order_relaxed), python = take_python.load(std::memory_order_relaxed);
  if (python || !native) raw.pythons = python::TakeFrames(raw.python.data(), raw.python.size());
  if (native || !python) raw.natives = TakeReturnAddresses(raw.native.data(), raw.Hash());
  if (raw.natives + raw.pythons == 0) return kNoSite;
  const uint64_t hash = raw.Hash();
  if (const Stack* const known = Table().Find(raw, hash)) return known->id;
  auto stack = std::make_unique<Stack>();
  stack->hash = hash;
  stack->native.assign(raw.native.begin(), raw.native.begin() + static_cast<ptrdiff_t>(raw.natives));
  stack->python.assign(raw.python.begin(), raw.python.begin() + static_cast<ptrdiff_t>(raw.pythons));
  stack->frames = Merged(raw);
  return Table().Add(std::move(stack));
}

bool FramesOf(SiteId site, std::vector<SiteFrame>* frames) {
  const Stack* const stack = Table().ById(site);
  if (stack == nullptr) return false;
  *frames = stack->frames;
  return true;
}

}  // namespace gpuledger
