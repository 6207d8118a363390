// quant/host_backend.h - a load into memory that this process can reach: pread and the host codec.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "load_pipeline.h"

namespace gpuledger {

// Reads on a thread of its own, in the order in which reads were started, while the caller quantizes.
class HostBackend final : public LoadBackend {
 public:
  explicit HostBackend(const SafetensorsFile& file);
  ~HostBackend() override;

  void StartRead(const TensorInfo& tensor, Bytes offset, Bytes size, DevicePtr to) override;
  absl::Status FinishRead() override;
  void AbandonReads() override;
  void PrepareBlock(const Nf4Layout& layout, DevicePtr block) override;
  void Quantize(const Nf4Layout& layout, const StagedPart& part) override;

 private:
  struct Request {
    const TensorInfo* tensor;
    Bytes offset;
    std::span<std::byte> to;
  };
  void ReadUntilStopped();

  const SafetensorsFile& file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> waiting_;  // guarded by mutex_, as is all below
  std::deque<absl::Status> finished_;
  uint64_t outstanding_ = 0;  // started, and not waited for
  bool stop_ = false;
  std::thread reader_;  // last: it uses the others
};

}  // namespace gpuledger
