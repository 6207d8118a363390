// How a payer gets to another thread: PyTorch copies ThreadLocalDebugInfo with a thread's state when backward() is called, and sets it
// on its own threads while they work for that call. An entry there, put once a thread, refers to where the thread publishes its payer;
// since the caller waits, it is in the same scope all the time.
#include "carried_payer.h"

#include <atomic>
#include <memory>
#include <optional>

#include <c10/util/Exception.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "gpuledger/payer_source.h"
#include "module_scopes.h"

namespace gpuledger::pytorch {
namespace {

using DebugInfo = c10::ThreadLocalDebugInfo;
// PyTorch's own kinds count from 0; nobody compares with others than the one he looks for.
constexpr auto kKind = static_cast<c10::DebugInfoKind>(0xC7);

struct CarriedPayer final : c10::DebugInfoBase {
  PublishedPayer payer;
};

std::atomic<bool> any_published = false;
thread_local constinit bool thread_has_ended = false;

// PyTorch's thread-local entries of a thread are gone some time before the thread is; ours are gone earlier, so that nobody asks it.
struct OfThread {
  std::shared_ptr<CarriedPayer> own;
  ~OfThread() {
    thread_has_ended = true;
    StopPublishing();
  }
};

OfThread* ThisThreads() noexcept {
  if (thread_has_ended) return nullptr;
  static_cast<void>(DebugInfo::get(kKind));  // begins to exist before `here`, so ends after it
  static thread_local OfThread here;
  return &here;
}

// The profiler takes off what it has put on, and only finds it on top: ours goes below. Under anything else nothing is put: it is
// somebody's for the length of a call, and the next scope finds it gone.
void Put(const std::shared_ptr<CarriedPayer>& own) {
  constexpr auto kProfiler = c10::DebugInfoKind::PROFILER_STATE;
  std::shared_ptr<c10::DebugInfoBase> profiler;
  if (DebugInfo::current() != nullptr) {
    if (DebugInfo::get(kProfiler) == nullptr) return;
    try {
      profiler = DebugInfo::_pop(kProfiler);
    } catch (const c10::Error&) {  // it is not on top
      return;
    }
  }
  if (DebugInfo::current() == nullptr) {
    DebugInfo::_push(kKind, own);
    any_published.store(true, std::memory_order_relaxed);
  }
  if (profiler != nullptr) DebugInfo::_push(kProfiler, std::move(profiler));
}

class Carrier final : public PayerSource {
 public:
  Payer WithoutScope() noexcept override {
    Payer payer;
    if (any_published.load(std::memory_order_relaxed) && ThisThreads() != nullptr) {
      if (const auto* carried = static_cast<const CarriedPayer*>(DebugInfo::get(kKind))) payer = carried->payer.Get();
    }
    if (const std::optional<OwnerId> module = ModuleOfBackward()) payer.owner = *module, payer.role = Role::kGradient;
    return payer;
  }

  PublishedPayer* ScopeEntered() noexcept override {
    OfThread* const here = ThisThreads();
    if (here == nullptr) return nullptr;
    const c10::DebugInfoBase* there = DebugInfo::get(kKind);
    if (there == nullptr) {
      if (here->own == nullptr) here->own = std::make_shared<CarriedPayer>();
      Put(here->own);
      there = DebugInfo::get(kKind);
    }
    // One that works for another thread hands on that one's.
    return there != nullptr && there == here->own.get() ? &here->own->payer : nullptr;
  }
};

}  // namespace

void CarryPayers() {
  static const bool once = [] {
    SetPayerSource(new Carrier);  // never destroyed: scopes are entered after main()
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace gpuledger::pytorch
