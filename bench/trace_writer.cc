// trace_writer FILE EVENTS [THREADS]: a trace of a program that allocates and frees, written by the recorder itself, for
// measuring how long a report takes. As in training: most blocks live shortly, a few long; owners and sites by the hundred.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/owner.h"
#include "gpuledger/recorder.h"

using namespace gpuledger;

namespace {

constexpr size_t kLiveEach = 20'000;  // blocks of a thread
constexpr uint64_t kEventsAMark = 1'000'000;

// A thread's own stream of records: what a ledger would write.
class Program {
 public:
  Program(Recorder& recorder, const std::vector<OwnerId>& owners, uint64_t number) : recorder_(recorder), owners_(owners), random_(number), next_id_(number << 40) {}

  void Run(uint64_t events) {
    for (uint64_t written = 0; written < events;) {
      if (live_.size() < kLiveEach && random_() % 2 == 0) {
        Allocate();
        written += 1;
      } else if (!live_.empty()) {
        Free();
        written += 2;
      }
      if (written / kEventsAMark != marks_) recorder_.Mark(fmt::format("step {}", ++marks_));
    }
  }

 private:
  Record Made(RecordKind kind, uint64_t id) {
    Record r;
    r.kind = kind;
    r.sequence = ++sequence_;
    r.time = TimePoint(time_);
    r.thread = ThisThread();
    r.allocation = AllocationId(id);
    return r;
  }
  void Allocate() {
    time_ += 400 + random_() % 800;
    Record r = Made(RecordKind::kAllocate, ++next_id_);
    r.requested = Bytes(random_() % 16 == 0 ? random_() % (64u << 20) + 1 : random_() % 8192 + 1);
    r.charged = SizeClass::For(r.requested).charged();
    r.address = 0x7f0000000000 + random_() % (1u << 26) * 512;
    r.owner = owners_[random_() % 8 == 0 ? random_() % owners_.size() : step_];
    if (random_() % 64 == 0) step_ = random_() % owners_.size();
    r.role = static_cast<Role>(random_() % kRoleCount);
    r.site = kNoSite;
    recorder_.Write(r);
    live_.push_back(next_id_);
  }
  // Mostly one of the youngest.
  void Free() {
    time_ += 200 + random_() % 400;
    const size_t back = random_() % 32 == 0 ? random_() % live_.size() : std::min<size_t>(random_() % 16, live_.size() - 1);
    uint64_t& place = live_[live_.size() - 1 - back];
    recorder_.Write(Made(RecordKind::kFreeRequested, place));
    recorder_.Write(Made(RecordKind::kFreeCompleted, place));
    place = live_.back();
    live_.pop_back();
  }

  Recorder& recorder_;
  const std::vector<OwnerId>& owners_;
  std::mt19937_64 random_;
  std::vector<uint64_t> live_;
  uint64_t next_id_, sequence_ = 0, time_ = 0, marks_ = 0;
  size_t step_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "trace_writer FILE EVENTS [THREADS]\n"), 2;
  const uint64_t events = std::strtoull(argv[2], nullptr, 10), threads = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 4;
  absl::StatusOr<std::unique_ptr<Recorder>> recorder = Recorder::Start({argv[1], Bytes(uint64_t{64} << 30)});
  if (!recorder.ok()) return std::fprintf(stderr, "%s\n", std::string(recorder.status().message()).c_str()), 1;
  std::vector<OwnerId> owners;
  for (int layer = 0; layer < 64; ++layer) {
    for (const char* const name : {"q", "k", "v", "o", "gate", "up", "down", "norm"}) owners.push_back(InternOwner(fmt::format("model/layers.{}.{}.weight", layer, name)));
  }
  std::vector<std::thread> running;
  for (uint64_t t = 0; t < threads; ++t) {
    running.emplace_back([&, t] { Program(**recorder, owners, t + 1).Run(events / threads); });
  }
  for (std::thread& thread : running) thread.join();
  (*recorder)->End();
}
