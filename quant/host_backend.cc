#include "host_backend.h"

#include <cstring>
#include <system_error>
#include <utility>

namespace gpuledger {
namespace {

template <class T>
T* At(DevicePtr block, Bytes offset = Bytes()) {
  return static_cast<T*>((block + offset).unsafe_host_pointer());
}

constexpr Bytes Floats(uint64_t count) { return Bytes(sizeof(float)) * count; }

// Scales that are all in the scratch become codes in the block.
void QuantizeScales(const QuantizeWork& work, Dialect dialect) {
  const FourBitLayout& layout = work.layout;
  const std::span<const float> absmax(At<float>(work.scratch), layout.blocks);
  const float offset = AbsmaxOffset(absmax);
  std::memcpy(At<std::byte>(work.block, layout.offset_at), &offset, sizeof(offset));
  QuantizeAbsmax(dialect, absmax, offset, {At<uint8_t>(work.block, layout.absmax_at), layout.blocks},
                 {At<float>(work.block, layout.nested_absmax_at), layout.nested_blocks});
}

}  // namespace

HostBackend::HostBackend(const ModelSource& source, Dialect dialect, uint64_t threads)
    : source_(source), dialect_(dialect) {
  threads_.reserve(threads);
  for (uint64_t i = 0; i < threads; ++i) {
    try {
      threads_.emplace_back([this] { WorkUntilStopped(); });
    } catch (const std::system_error&) {
      if (threads_.empty()) throw;
      break;  // fewer threads do the same work
    }
  }
}

HostBackend::~HostBackend() {
  Abandon();
  for (std::thread& thread : threads_) thread.join();
}

void HostBackend::PrepareBlock(const FourBitLayout& layout, DevicePtr block) {
  const Bytes packed = PackedBytes(layout.elements);
  std::memset(At<std::byte>(block, packed), 0, (packed.RoundUpTo(Floats(1)) - packed).count());
  const std::array<float, 16>& table = CodeTable(layout.format.type);
  std::memcpy(At<std::byte>(block, layout.table_at), table.data(), sizeof(table));
  if (!layout.format.double_quant) return;
  std::memcpy(At<std::byte>(block, layout.nested_table_at), NestedTable().data(), sizeof(NestedTable()));
}

void HostBackend::Start(const LoadWork& work) {
  {
    const std::lock_guard lock(mutex_);
    started_.push_back(std::make_shared<Job>(Job{work}));
    waiting_.push_back(started_.back());
  }
  changed_.notify_all();
}

absl::StatusOr<ErrorSums> HostBackend::Finish() {
  std::unique_lock lock(mutex_);
  const std::shared_ptr<Job> oldest = std::move(started_.front());
  started_.pop_front();
  changed_.wait(lock, [&] { return oldest->done; });
  return oldest->result;
}

void HostBackend::Abandon() {
  std::unique_lock lock(mutex_);
  stop_ = true;
  waiting_.clear();
  changed_.notify_all();
  changed_.wait(lock, [this] { return running_ == 0; });
  started_.clear();
}

void HostBackend::WorkUntilStopped() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
    if (stop_) return;
    const std::shared_ptr<Job> job = std::move(waiting_.front());
    waiting_.pop_front();
    running_ += 1;
    lock.unlock();
    absl::StatusOr<ErrorSums> result = std::visit([this](const auto& work) { return Do(work); }, job->work);
    lock.lock();
    job->result = std::move(result);
    job->done = true;
    running_ -= 1;
    changed_.notify_all();
  }
}

absl::StatusOr<ErrorSums> HostBackend::Do(const ReadWork& work) {
  absl::Status status = source_.Read(*work.tensor, work.offset, {At<std::byte>(work.to), work.size.count()});
  if (!status.ok()) return status;
  return ErrorSums();
}

absl::StatusOr<ErrorSums> HostBackend::Do(const QuantizeWork& work) {
  const WeightPart& part = work.part;
  const FourBitLayout& layout = work.layout;
  if (absl::Status status = ReadPart(*work.tensor, part, work.slot); !status.ok()) return status;
  const bool nested = layout.format.double_quant;
  if (nested && !AwaitTurn(part.ordinal)) return absl::CancelledError("the load was abandoned");
  const uint64_t scale = part.first / layout.format.block;
  float* const absmax = nested ? At<float>(work.scratch, Floats(scale)) : At<float>(work.block, layout.absmax_at + Floats(scale));
  Quantize4Bit(layout.format, dialect_, work.type, At<std::byte>(work.slot), part.count,
               {At<uint8_t>(work.block, Bytes(part.first / 2)), PackedBytes(part.count).count()},
               {absmax, BlockCount(part.count, layout.format.block)});
  if (nested && CountPart(part)) {
    QuantizeScales(work, dialect_);
    PassTurn();
  }
  return ErrorSums();
}

absl::StatusOr<ErrorSums> HostBackend::Do(const VerifyWork& work) {
  if (absl::Status status = ReadPart(*work.tensor, work.part, work.slot); !status.ok()) return status;
  return CompareWithBlock(work.layout, At<std::byte>(work.block), work.type, At<std::byte>(work.slot), work.part.first,
                          work.part.count);
}

absl::Status HostBackend::ReadPart(const TensorInfo& tensor, const WeightPart& part, DevicePtr slot) const {
  const Bytes element = DtypeSize(tensor.dtype);
  return source_.Read(tensor, element * part.first, {At<std::byte>(slot), (element * part.count).count()});
}

bool HostBackend::AwaitTurn(uint64_t ordinal) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stop_ || turn_ == ordinal; });
  return !stop_;
}

bool HostBackend::CountPart(const WeightPart& part) {
  const std::lock_guard lock(mutex_);
  parts_done_ += 1;
  return parts_done_ == part.parts;
}

void HostBackend::PassTurn() {
  {
    const std::lock_guard lock(mutex_);
    turn_ += 1;
    parts_done_ = 0;
  }
  changed_.notify_all();
}

}  // namespace gpuledger
