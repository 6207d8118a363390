// Recorder: what is not the path of a record.
#include "gpuledger/recorder.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <new>

#include "gpuledger/process.h"
#include "recorder_impl.h"

namespace gpuledger {

using trace::Extra;
using trace::ExtraEntry;

namespace {

constexpr Bytes kSmallestLimit = 1_MiB;

Recorder::Impl::Leaves* MapLeaves() {
  void* const mapped = mmap(nullptr, sizeof(Recorder::Impl::Leaves), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  madvise(mapped, sizeof(Recorder::Impl::Leaves), MADV_WIPEONFORK);
  return new (mapped) Recorder::Impl::Leaves{};
}

}  // namespace

Recorder::Impl::Impl(RecorderOptions its_options, std::unique_ptr<trace::RecorderFile> its_file)
    : options(std::move(its_options)),
      number([] {
        static std::atomic<uint64_t> next{1};
        return next.fetch_add(1);
      }()),
      file(std::move(its_file)),
      by_thread(MapLeaves()) {
  fold_again_at = options.limit.count() / 2;
  Register();
}

Recorder::Impl::~Impl() {
  Unregister();
  for (const auto& ring : rings) file->UnmapRing(ring->base);
  munmap(by_thread, sizeof *by_thread);
}

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::Start(const RecorderOptions& options) {
  absl::StatusOr<std::unique_ptr<Recorder>> recorder = Prepare(options);
  if (!recorder.ok()) return recorder;
  const absl::Status serves = (*recorder)->BeginServing(Beginning::kEmpty);
  if (!serves.ok()) return serves;
  return recorder;
}

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::Prepare(const RecorderOptions& options) {
  absl::StatusOr<std::unique_ptr<trace::RecorderFile>> file = trace::RecorderFile::Create(options.path);
  if (!file.ok()) return file.status();
  (*file)->header().snapshot = trace::kSnapshotDue;  // until it is known that there is nothing to tell
  return std::unique_ptr<Recorder>(new Recorder(std::make_unique<Impl>(RecorderOptions{options.path, std::max(options.limit, kSmallestLimit)}, *std::move(file))));
}

absl::Status Recorder::BeginServing(Beginning beginning) {
  if (beginning == Beginning::kEmpty) impl_->file->header().snapshot = 0;
  if (beginning == Beginning::kSnapshotNow) impl_->BeginWithSnapshot();
  return impl_->StartDrainer(beginning == Beginning::kSnapshotSoon);
}

Recorder::Recorder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Recorder::~Recorder() {
  End();
  if (impl_->Abandoned()) static_cast<void>(impl_.release());  // what it has mapped is not there, and its thread neither
}

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
uint64_t Recorder::lost() const { return impl_->Abandoned() ? 0 : std::atomic_ref(impl_->file->header().lost).load(std::memory_order_relaxed); }

}  // namespace gpuledger
