// The model test at scale: random operations on every kind of upstream, with injected failures and held fences, workers that
// take turns (a failure is printed as a minimal call of Replay()) and threads at once. tests/README.md says how to run 10^8.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include <gtest/gtest.h>

#include "scale_model_lane.h"
#include "scale_model_run.h"

namespace gpuledger::scale {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

constexpr uint64_t kSweepEvery = 10'000;
constexpr uint64_t kWhole = 4'000'000;  // of the first test; the others have their share of what is asked for

void Replay(const Scene& scene, std::initializer_list<Operation> operations) {
  const Outcome outcome = RunSequence(scene, {operations.begin(), operations.size()}, 1, false);
  EXPECT_EQ(outcome.failure, "") << AsRegression(scene, outcome.operations);
}

Scene SomeScene(Random& random, On on, uint32_t workers) {
  Scene scene{.on = on, .workers = workers};
  const bool host = on == On::kHostAnonymous || on == On::kHostMemfd;
  scene.memory = random.below(32) == 0 ? uint64_t{40} << 20 : uint64_t{128} << 20 << random.below(host ? 1 : 3);
  scene.slots = 64u << random.below(host ? 4 : 6);
  scene.hold = random.below(4) != 0;
  scene.per_thread = random.below(2) == 0;
  if (random.below(4) == 0) scene.release_after = 1'000'000 + random.below(100'000'000);
  return scene;
}

// The seeds of the episodes come from one seed, which is printed. GPULEDGER_SCALE_OPERATIONS asks for so many in the first
// test, and for as many more in the others; GPULEDGER_MODEL_OPERATIONS for no more than so many in each.
template <class Episode>
void RunModel(uint64_t operations, uint64_t longest, Episode&& episode) {
  const uint64_t seed = FromEnvironment("GPULEDGER_MODEL_SEED", std::random_device{}());
  uint64_t total = operations;
  if (const uint64_t model = FromEnvironment("GPULEDGER_MODEL_OPERATIONS", 0); model != 0) total = std::min(total, model);
  if (const uint64_t asked = FromEnvironment("GPULEDGER_SCALE_OPERATIONS", 0); asked != 0) {
    total = static_cast<uint64_t>(static_cast<double>(asked) * static_cast<double>(operations) / static_cast<double>(kWhole));
  }
  std::printf("seed: GPULEDGER_MODEL_SEED=%llu, %llu operations\n", static_cast<unsigned long long>(seed), static_cast<unsigned long long>(total));
  std::fflush(stdout);
  Random random(seed);
  Outcome sum;
  const auto begin = std::chrono::steady_clock::now();
  while (sum.done < total && !::testing::Test::HasFailure()) {
    const uint64_t length = std::min(total - sum.done, longest >> (2 * random.below(3)));
    const Outcome outcome = episode(random, length);
    sum.done += std::max<uint64_t>(outcome.done, 1);
    sum.requests += outcome.requests, sum.refusals += outcome.refusals, sum.relieved += outcome.relieved, sum.births += outcome.births;
    sum.sweeps += outcome.sweeps;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%llu operations in %.1f s (%.2f million a second): %llu requests, %llu refused, %llu freed by callbacks, %llu threads, %llu sweeps\n",
              static_cast<unsigned long long>(sum.done), seconds, static_cast<double>(sum.done) / seconds / 1e6,
              static_cast<unsigned long long>(sum.requests), static_cast<unsigned long long>(sum.refusals),
              static_cast<unsigned long long>(sum.relieved), static_cast<unsigned long long>(sum.births), static_cast<unsigned long long>(sum.sweeps));
}

void InTurn(On on, uint64_t operations) {
  // Whole ranges use up addresses, and with them the table of claims.
  RunModel(operations, on == On::kFakeWholeRanges ? 50'000 : 1'000'000, [on](Random& random, uint64_t length) {
    const auto workers = static_cast<uint32_t>(1 + random.below(4));
    const Scene scene = SomeScene(random, on, workers);
    const bool with_faults = random.below(2) == 0;
    Outcome outcome = RunEpisode(scene, random(), length, kSweepEvery, with_faults);
    if (!outcome.failure.empty()) {
      const auto seconds = static_cast<double>(FromEnvironment("GPULEDGER_SCALE_MINIMISE_SECONDS", 60));
      const std::vector<Operation> least = Minimise(scene, outcome.operations, seconds);
      std::string again = RunSequence(scene, least, 1, true).failure;
      if (again.empty()) again = RunSequence(scene, least, ~uint64_t{0}, true).failure + " (with one sweep, at the end)";
      ADD_FAILURE() << outcome.failure << "\nafter " << outcome.operations.size() << " operations; in short, " << again << "\n" << AsRegression(scene, least);
    }
    return outcome;
  });
}

void AtOnce(On on, uint32_t workers, uint64_t operations) {
  RunModel(operations, 1'000'000, [on, workers](Random& random, uint64_t length) {
    const Scene scene = SomeScene(random, on, workers);
    const uint64_t seed = random();
    const bool with_faults = random.below(2) == 0;
    Outcome outcome = RunAtOnce(scene, seed, length, kSweepEvery, with_faults);
    if (!outcome.failure.empty()) {
      ADD_FAILURE() << outcome.failure << "\n" << workers << " threads, episode seed " << seed << ", " << length << " operations, "
                    << (with_faults ? "with" : "without") << " faults, " << AsText(scene);
    }
    return outcome;
  });
}

TEST(ScaleModel, WorkersInTurnAgreeWithANaiveMap) { InTurn(On::kFake, kWhole); }
TEST(ScaleModel, WorkersInTurnAgreeWhereHandlesHaveOneAddress) { InTurn(On::kFakeUnaliased, kWhole / 5); }
TEST(ScaleModel, WorkersInTurnAgreeWhereRangesComeWithTheirMemory) { InTurn(On::kFakeWholeRanges, kWhole / 10); }
TEST(ScaleModel, NoWordOfALiveBlockChangesInAnonymousMemory) { InTurn(On::kHostAnonymous, kWhole / 10); }
TEST(ScaleModel, NoWordOfALiveBlockChangesInAMemoryFile) { InTurn(On::kHostMemfd, kWhole / 10); }
TEST(ScaleModel, OneThreadAgreesWithinBounds) { AtOnce(On::kFake, 1, kWhole / 10); }
TEST(ScaleModel, TwoThreadsAtOnceAgreeWithinBounds) { AtOnce(On::kFake, 2, kWhole / 4); }
TEST(ScaleModel, FourThreadsAtOnceAgreeWithinBounds) { AtOnce(On::kFake, 4, kWhole / 4); }
TEST(ScaleModel, NoWordChangesWhileFourThreadsRunAtOnce) { AtOnce(On::kHostMemfd, 4, kWhole / 10); }

// What the model has found, in short.

TEST(ScaleModelFound, APrivatePoolOfADeadThreadsStreamIsStillPrivate) {
  Replay({.slots = 64}, {
    {.what = Do::kCreatePool},
    {.what = Do::kAllocate, .stream = kPerThread, .pool = 1, .slot = 1, .value = 512},
    {.what = Do::kFree, .slot = 1},
    {.what = Do::kExit},
    {.what = Do::kRelease},
  });
}

TEST(ScaleModelFound, AnAllocatorMayEndBeforeItsPrivatePools) {
  Replay({.slots = 64}, {
    {.what = Do::kCreatePool},
    {.what = Do::kAllocate, .pool = 1, .slot = 1, .value = 512},
  });
}

TEST(ScaleModelFound, AStreamThatGotTheHandleOfARetiredOneIsAnotherStream) {
  Replay({.slots = 64}, {
    {.what = Do::kAllocate, .stream = 4, .slot = 1, .value = 512},
    {.what = Do::kRetire, .stream = 4},
    {.what = Do::kUseOn, .stream = 4, .slot = 1},
    {.what = Do::kFree, .slot = 1},
    {.what = Do::kAllocate, .stream = 1, .slot = 2, .value = 512},
    {.what = Do::kRelease},
  });
}

TEST(ScaleModelFound, ABlockWhoseUserIsGoneIsStillCountedAsPending) {
  Replay({.slots = 64}, {
    {.what = Do::kAllocate, .slot = 1, .value = 512},
    {.what = Do::kUseOn, .stream = 4, .slot = 1},
    {.what = Do::kRetire, .stream = 4},
    {.what = Do::kFree, .slot = 1},
  });
}

TEST(ScaleModelFound, APrivatePoolInTheRangeOfOneThatIsGoneKeepsItsMemory) {
  Replay({.slots = 2048, .hold = false, .per_thread = false}, {
    {.what = Do::kCreatePool},
    {.what = Do::kAllocate, .payer = 8, .pool = 1, .slot = 672, .value = 1},
    {.what = Do::kAllocate, .stream = 1, .payer = 10, .pool = 1, .slot = 1305, .value = 449},
    {.what = Do::kFree, .slot = 1305},
    {.what = Do::kFree, .slot = 672},
    {.what = Do::kAllocate, .stream = 2, .payer = 10, .pool = 1, .slot = 913, .value = 12},
    {.what = Do::kAllocate, .stream = 4, .payer = 6, .pool = 1, .slot = 1361, .value = 2247},
    {.what = Do::kRetire, .stream = 4},
    {.what = Do::kReleasePool},
    {.what = Do::kFree, .slot = 913},
    {.what = Do::kFree, .slot = 1361},
    {.what = Do::kRelease},
    {.what = Do::kCreatePool, .pool = 2},
    {.what = Do::kAllocate, .payer = 11, .pool = 3, .slot = 940, .value = 18},
    {.what = Do::kAllocate, .stream = 3, .payer = 3, .pool = 3, .slot = 934, .value = 1498},
    {.what = Do::kAllocate, .stream = 4, .payer = 6, .pool = 3, .slot = 1394, .value = 945},
    {.what = Do::kAllocate, .stream = 2, .payer = 3, .pool = 3, .slot = 1342, .value = 496},
    {.what = Do::kReleasePool, .pool = 2},
    {.what = Do::kRelease},
    {.what = Do::kFree, .slot = 1342},
    {.what = Do::kRelease},
  });
}

TEST(ScaleModel, PrintsASequenceThatCompilesAsARegression) {
  const Scene scene{.memory = 33554432u, .slots = 64};
  const Operation operations[] = {{.what = Do::kAllocate, .stream = 1, .slot = 3, .value = 512}, {.what = Do::kFree, .slot = 3}};
  EXPECT_EQ(AsRegression(scene, operations),
            "Replay({.on = On::kFake, .memory = 33554432u, .cap = 18446744073709551615u, .slots = 64, .workers = 1, .hold = true, .per_thread = true, .release_after = 0}, {\n"
            "  {.what = Do::kAllocate, .stream = 1, .slot = 3, .value = 512},\n"
            "  {.what = Do::kFree, .slot = 3},\n"
            "});");
  Replay({.on = On::kFake, .memory = 33554432u, .cap = 18446744073709551615u, .slots = 64, .workers = 1, .hold = true, .per_thread = true, .release_after = 0}, {
    {.what = Do::kAllocate, .stream = 1, .slot = 3, .value = 512},
    {.what = Do::kFree, .slot = 3},
  });
}

}  // namespace
}  // namespace gpuledger::scale
