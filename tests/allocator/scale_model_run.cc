#include "scale_model_run.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include <fmt/format.h>

#include "scale_model_generator.h"
#include "scale_model_lane.h"

namespace gpuledger::scale {
namespace {

// ---- workers that take turns -------------------------------------------------------------------------------------------------

class Turns {
 public:
  // `next` gives the next operation; false at the end.
  Turns(const Scene& scene, uint64_t sweep_every, std::function<bool(const Lane&, Operation*)> next)
      : world(scene, false), lane(world, 0), sweep_every_(sweep_every), next_(std::move(next)) {}

  void Run() {
    std::vector<std::thread> workers(world.scene.workers);
    uint32_t goes_on = 0;
    for (;;) {
      if (!workers[goes_on].joinable()) workers[goes_on] = std::thread([this, me = goes_on] { Work(me); });
      std::unique_lock lock(mutex_);
      turn_ = goes_on;
      changed_.notify_all();
      changed_.wait(lock, [this] { return turn_ == kNobody; });
      lock.unlock();
      if (over_) break;
      if (exited_) workers[goes_on].join();
      goes_on = wanted_;
    }
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
      changed_.notify_all();
    }
    for (std::thread& worker : workers) {
      if (worker.joinable()) worker.join();
    }
    if (!world.failed()) world.Sweep({&lane});
    if (!world.failed()) world.Finish({&lane});
  }

  World world;
  Lane lane;
  uint64_t done = 0;

 private:
  static constexpr uint32_t kNobody = ~uint32_t{0};

  void Work(uint32_t me) {
    world.StartThread();
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return turn_ == me || ended_; });
      if (ended_) return;
      lock.unlock();
      exited_ = false;
      Operation operation;
      bool mine = true;
      while (mine && !over_) {
        if (world.failed() || !next_(lane, &operation)) {
          over_ = true;
          break;
        }
        lane.Do(operation);
        ++done;
        if (done % sweep_every_ == 0) world.Sweep({&lane});
        if (operation.what == Do::kExit || operation.what == Do::kSwitch) {
          wanted_ = operation.what == Do::kExit ? me : static_cast<uint32_t>(operation.value % world.scene.workers);
          exited_ = operation.what == Do::kExit;
          mine = wanted_ == me && !exited_;
        }
      }
      if (exited_) world.EndThread();
      lock.lock();
      turn_ = kNobody;
      changed_.notify_all();
      if (exited_) return;
    }
  }

  const uint64_t sweep_every_;
  const std::function<bool(const Lane&, Operation*)> next_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t turn_ = kNobody, wanted_ = 0;
  bool over_ = false, exited_ = false, ended_ = false;
};

// ---- children ----------------------------------------------------------------------------------------------------------------

// What a child leaves behind, however it ends.
struct Shared {
  uint64_t recorded, done, requests, refusals, relieved, births, sweeps;
  char failure[4096];
};

class SharedMemory {
 public:
  explicit SharedMemory(uint64_t operations) : size_(sizeof(Shared) + operations * sizeof(Operation)) {
    at_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at_ == MAP_FAILED) Die("scale model: no shared memory");
  }
  ~SharedMemory() { ::munmap(at_, size_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  [[nodiscard]] Shared& shared() const { return *static_cast<Shared*>(at_); }
  [[nodiscard]] Operation* operations() const { return reinterpret_cast<Operation*>(static_cast<char*>(at_) + sizeof(Shared)); }

 private:
  size_t size_;
  void* at_;
};

// Runs `body` in a child; what was the matter with its end.
std::string InChild(const std::function<void()>& body, bool quiet) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) Die("scale model: fork failed");
  if (child == 0) {
    if (quiet) {
      const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
      ::dup2(null, STDERR_FILENO);
    }
    ::alarm(600);  // an episode that hangs
    body();
    ::_exit(0);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) return fmt::format("died of signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  return WEXITSTATUS(status) == 0 ? "" : fmt::format("ended with {}", WEXITSTATUS(status));
}

Outcome Run(const Scene& scene, uint64_t most, uint64_t sweep_every, bool quiet, const std::function<bool(const Lane&, Operation*)>& next) {
  SharedMemory memory(most);
  Shared& shared = memory.shared();
  const std::string died = InChild(
      [&] {
        Turns turns(scene, sweep_every, [&](const Lane& lane, Operation* operation) {
          if (shared.recorded == most || !next(lane, operation)) return false;
          memory.operations()[shared.recorded++] = *operation;
          return true;
        });
        turns.Run();
        const World& w = turns.world;
        shared.done = turns.done;
        shared.requests = w.requests, shared.refusals = w.refusals, shared.relieved = w.relieved, shared.births = w.births, shared.sweeps = w.sweeps;
        std::strncpy(shared.failure, turns.world.failure().c_str(), sizeof shared.failure - 1);
        if (turns.world.failed()) ::_exit(0);  // its destructors would say more than is needed
      },
      quiet);
  Outcome outcome{shared.failure, {}, shared.done, shared.requests, shared.refusals, shared.relieved, shared.births, shared.sweeps};
  if (outcome.failure.empty()) outcome.failure = died;
  if (!outcome.failure.empty()) outcome.operations.assign(memory.operations(), memory.operations() + shared.recorded);
  return outcome;
}

}  // namespace

Outcome RunEpisode(const Scene& scene, uint64_t seed, uint64_t count, uint64_t sweep_every, bool with_faults) {
  Generator generator(seed, scene, false, with_faults);
  return Run(scene, count, sweep_every, false, [&](const Lane& lane, Operation* operation) {
    *operation = generator.Next(lane);
    return true;
  });
}

Outcome RunSequence(const Scene& scene, std::span<const Operation> operations, uint64_t sweep_every, bool quiet) {
  size_t next = 0;
  return Run(scene, operations.size(), sweep_every, quiet, [&](const Lane&, Operation* operation) {
    if (next == operations.size()) return false;
    *operation = operations[next++];
    return true;
  });
}

std::vector<Operation> Minimise(const Scene& scene, std::vector<Operation> operations, double seconds) {
  const auto begin = std::chrono::steady_clock::now();
  const auto late = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > seconds; };
  // Fails for the same reason, whatever the figures in it; cut to what had been done by then.
  const auto reason = [](std::string text) {
    std::erase_if(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
    return text;
  };
  std::string failure;
  uint64_t sweeps = 200;  // in one run; a sweep flushes and forgets, and may hide what it should find
  const auto still_fails = [&](std::vector<Operation>& candidate) {
    Outcome outcome = RunSequence(scene, candidate, sweeps == 0 ? ~uint64_t{0} : std::max<uint64_t>(1, candidate.size() / sweeps), true);
    if (outcome.failure.empty() || (!failure.empty() && reason(outcome.failure) != reason(failure))) return false;
    failure = outcome.failure;
    candidate = std::move(outcome.operations);
    return true;
  };
  std::vector<Operation> whole = operations;
  if (!still_fails(whole)) {
    sweeps = 0;
    if (!still_fails(whole)) return operations;
  }
  operations = std::move(whole);
  for (size_t chunk = std::max<size_t>(operations.size() / 2, 1); !late();) {
    bool dropped = false;
    for (size_t at = 0; at < operations.size() && !late();) {
      std::vector<Operation> candidate(operations.begin(), operations.begin() + static_cast<std::ptrdiff_t>(at));
      const size_t after = std::min(at + chunk, operations.size());
      candidate.insert(candidate.end(), operations.begin() + static_cast<std::ptrdiff_t>(after), operations.end());
      if (!candidate.empty() && still_fails(candidate)) {
        operations = std::move(candidate);
        dropped = true;
      } else {
        at += chunk;
      }
    }
    if (chunk == 1 && !dropped) break;
    chunk = std::max<size_t>(1, std::min(chunk / 2, operations.size() / 2));
  }
  return operations;
}

// ---- lanes at once -----------------------------------------------------------------------------------------------------------

namespace {

// Where all lanes meet; the last one runs `action` while the others wait.
class Meeting {
 public:
  Meeting(uint32_t members, std::function<void()> action) : members_(members), action_(std::move(action)) {}
  void Arrive() {
    std::unique_lock lock(mutex_);
    const uint64_t mine = meeting_;
    if (++here_ == members_) {
      action_();
      here_ = 0;
      ++meeting_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return meeting_ != mine; });
    }
  }

 private:
  const uint32_t members_;
  const std::function<void()> action_;
  std::mutex mutex_;
  std::condition_variable all_here_;
  uint32_t here_ = 0;
  uint64_t meeting_ = 0;
};

}  // namespace

Outcome RunAtOnce(const Scene& scene, uint64_t seed, uint64_t count, uint64_t sweep_every, bool with_faults) {
  World world(scene, true);
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<Lane*> all;
  for (uint32_t i = 0; i < scene.workers; ++i) all.push_back(lanes.emplace_back(std::make_unique<Lane>(world, static_cast<int>(i))).get());
  for (Lane* lane : all) {
    for (Lane* other : all) {
      if (other != lane) lane->others.push_back(other);
    }
  }
  Meeting meeting(scene.workers, [&] {
    if (!world.failed()) world.Sweep(all);
  });
  const uint64_t each = count / scene.workers, meet_every = std::max<uint64_t>(sweep_every / scene.workers, 1);
  const auto live_a_lane = [&](Lane& lane) {
    Generator generator(seed + static_cast<uint64_t>(lane.number) * 0x632be59bd9b4e019u, scene, true, with_faults);
    uint64_t done = 0;
    const auto one_life = [&] {
      world.StartThread();
      bool alive = true;
      while (alive && done < each) {
        const Operation operation = generator.Next(lane);
        if (!world.failed()) {
          lane.Do(operation);
          lane.TakeIn(generator.random);
        }
        alive = operation.what != Do::kExit;
        if (++done % meet_every == 0) meeting.Arrive();
      }
      std::unique_lock lock(lane.order);
      world.EndThread();
    };
    while (done < each) std::thread(one_life).join();
  };
  std::vector<std::thread> threads;
  for (Lane* lane : all) threads.emplace_back([&live_a_lane, lane] { live_a_lane(*lane); });
  for (std::thread& thread : threads) thread.join();
  if (!world.failed()) world.Sweep(all);
  if (!world.failed()) world.Finish(all);
  if (world.failed()) {  // with blocks left, the allocator would end the program
    static_cast<void>(world.allocator.release());
    static_cast<void>(world.upstream.release());
    static_cast<void>(world.inner.release());
  }
  return {world.failure(), {}, each * scene.workers, world.requests, world.refusals, world.relieved, world.births, world.sweeps};
}

}  // namespace gpuledger::scale
