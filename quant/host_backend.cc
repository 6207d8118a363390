#include "host_backend.h"

#include <cstring>
#include <utility>

namespace gpuledger {
namespace {

template <class T>
T* At(DevicePtr block, Bytes offset = Bytes()) {
  return static_cast<T*>((block + offset).unsafe_host_pointer());
}

}  // namespace

HostBackend::HostBackend(const SafetensorsFile& file) : file_(file), reader_([this] { ReadUntilStopped(); }) {}

HostBackend::~HostBackend() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  reader_.join();
}

void HostBackend::StartRead(const TensorInfo& tensor, Bytes offset, Bytes size, DevicePtr to) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back({&tensor, offset, {At<std::byte>(to), size.count()}});
    outstanding_ += 1;
  }
  changed_.notify_all();
}

absl::Status HostBackend::FinishRead() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !finished_.empty(); });
  absl::Status status = std::move(finished_.front());
  finished_.pop_front();
  outstanding_ -= 1;
  return status;
}

void HostBackend::AbandonReads() {
  std::unique_lock lock(mutex_);
  outstanding_ -= waiting_.size();
  waiting_.clear();
  changed_.wait(lock, [this] { return finished_.size() == outstanding_; });
  finished_.clear();
  outstanding_ = 0;
}

void HostBackend::PrepareBlock(const Nf4Layout& layout, DevicePtr block) {
  const Bytes packed = Nf4PackedBytes(layout.elements);
  std::memset(At<std::byte>(block, packed), 0, (layout.absmax_at - packed).count());
  std::memcpy(At<std::byte>(block, layout.table_at), Nf4Table().data(), sizeof(Nf4Table()));
}

void HostBackend::Quantize(const Nf4Layout& layout, const StagedPart& part) {
  const Bytes packed_at = Bytes(part.first / 2);
  const Bytes absmax_at = layout.absmax_at + Nf4AbsmaxBytes(part.first);
  QuantizeNf4(part.type, At<std::byte>(part.from), part.count,
              {At<uint8_t>(part.block, packed_at), Nf4PackedBytes(part.count).count()},
              {At<float>(part.block, absmax_at), Nf4Blocks(part.count)});
}

void HostBackend::ReadUntilStopped() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
    if (stop_) return;
    const Request request = waiting_.front();
    waiting_.pop_front();
    lock.unlock();
    absl::Status status = file_.Read(*request.tensor, request.offset, request.to);
    lock.lock();
    finished_.push_back(std::move(status));
    changed_.notify_all();
  }
}

}  // namespace gpuledger
