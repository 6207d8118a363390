// quant/host_backend.h - a load into memory that this process can reach: pread and the host codec, on several threads.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "load_pipeline.h"

namespace gpuledger {

// Threads take work in the order in which it was started. One that has read a part of the next weight while the scratch
// still holds scales of the last waits for its turn: all parts of the last are with other threads by then.
class HostBackend final : public LoadBackend {
 public:
  HostBackend(const ModelSource& source, Dialect dialect, uint64_t threads);
  ~HostBackend() override;

  void PrepareBlock(const FourBitLayout& layout, DevicePtr block) override;
  void Start(const LoadWork& work) override;
  absl::StatusOr<ErrorSums> Finish() override;
  void Abandon() override;

 private:
  struct Job {
    LoadWork work;
    bool done = false;
    absl::StatusOr<ErrorSums> result = ErrorSums();
  };

  void WorkUntilStopped();
  absl::StatusOr<ErrorSums> Do(const ReadWork& work);
  absl::StatusOr<ErrorSums> Do(const QuantizeWork& work);
  absl::StatusOr<ErrorSums> Do(const VerifyWork& work);
  absl::Status ReadPart(const TensorInfo& tensor, const WeightPart& part, DevicePtr slot) const;
  // False if the load was abandoned meanwhile.
  bool AwaitTurn(uint64_t ordinal);
  // True for the last part of its weight.
  bool CountPart(const WeightPart& part);
  void PassTurn();

  const ModelSource& source_;
  const Dialect dialect_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> started_;  // not waited for yet; guarded by mutex_, as is all below
  std::deque<std::shared_ptr<Job>> waiting_;  // not begun
  uint64_t running_ = 0;
  uint64_t turn_ = 0;        // ordinal of the weight that has the scratch
  uint64_t parts_done_ = 0;  // of that weight
  bool stop_ = false;
  std::vector<std::thread> threads_;  // last: they use the others
};

}  // namespace gpuledger
