// Recorder: what is not the path of a record.
#include "gpuledger/recorder.h"

#include <chrono>

#include "gpuledger/process.h"
#include "recorder_impl.h"

namespace gpuledger {

using trace::Extra;
using trace::ExtraEntry;

Recorder::Impl::Impl(RecorderOptions its_options, std::unique_ptr<trace::RecorderFile> its_file)
    : options(std::move(its_options)),
      number([] {
        static std::atomic<uint64_t> next{1};
        return next.fetch_add(1);
      }()),
      file(std::move(its_file)) {
  Register();
}

Recorder::Impl::~Impl() {
  Unregister();
  for (const auto& ring : rings) file->UnmapRing(ring->base);
  for (auto& leaf : by_thread) delete leaf.load();
}

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::Start(const RecorderOptions& options) {
  absl::StatusOr<std::unique_ptr<Recorder>> recorder = StartWithSnapshot(options);
  if (recorder.ok()) (*recorder)->impl_->StartDrainer(false);
  return recorder;
}

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::StartWithSnapshot(const RecorderOptions& options) {
  absl::StatusOr<std::unique_ptr<trace::RecorderFile>> file = trace::RecorderFile::Create(options.path);
  if (!file.ok()) return file.status();
  return std::unique_ptr<Recorder>(new Recorder(std::make_unique<Impl>(options, *std::move(file))));
}

void Recorder::BeginServing(Snapshot snapshot) {
  if (snapshot == Snapshot::kNow) impl_->file->header().snapshot = impl_->WriteSnapshot();
  impl_->StartDrainer(snapshot == Snapshot::kSoon);
}

Recorder::Recorder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Recorder::~Recorder() { End(); }

void Recorder::End() noexcept {
  impl_->Extra({.kind = Extra::kProgramEnded});
  impl_->Finish();
}

void Recorder::Impl::Extra(ExtraEntry entry) noexcept {
  trace::Ring* const ring = RingOf(ThisThread());
  if (ring == nullptr) return;
  entry.time = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
  WriteExtra(*ring, entry);
}

void Recorder::Mark(std::string_view text) noexcept { impl_->Extra({.kind = Extra::kMark, .text = text}); }
void Recorder::Settle(SettleStep step) noexcept {
  impl_->Extra({.kind = Extra::kSettle, .value = static_cast<uint64_t>(step)});
}
void Recorder::Fact(DeviceId device, AllocationId allocation, FactKind fact, uint64_t value, std::string_view text) noexcept {
  impl_->Extra({.kind = Extra::kFact, .id = allocation.value(), .value = static_cast<uint64_t>(fact), .more = value,
                .device = device.value(), .text = text});
}
void Recorder::ScopeEnded(ScopeId scope) noexcept { impl_->Extra({.kind = Extra::kScopeEnded, .id = scope.value()}); }

const std::string& Recorder::path() const { return impl_->file->path(); }
uint64_t Recorder::lost() const { return std::atomic_ref(impl_->file->header().lost).load(std::memory_order_relaxed); }

}  // namespace gpuledger
