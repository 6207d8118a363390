// Sites: one id for one stack, frames with names when they are asked for.
#include "gpuledger/sites.h"

#include <gtest/gtest.h>

#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "gpuledger/owner.h"
#include "gpuledger/trace_reader.h"
#include "gpuledger/symbolise.h"

namespace gpuledger {
namespace {

class SitesTest : public ::testing::Test {
 protected:
  SitesTest() { SetStacks(true, false); }
  ~SitesTest() override { SetStacks(false, false); }
};

[[gnu::noinline]] SiteId Here() {
  const SiteId site = TakeSite();
  asm volatile("" ::: "memory");
  return site;
}
[[gnu::noinline]] SiteId Below(int depth) {
  const SiteId site = depth == 0 ? Here() : Below(depth - 1);
  asm volatile("" ::: "memory");
  return site;
}

std::vector<TraceFrame> FramesWithNames(SiteId site) {
  std::vector<SiteFrame> taken;
  EXPECT_TRUE(FramesOf(site, &taken));
  std::vector<TraceFrame> frames;
  for (const SiteFrame& f : taken) {
    LoadedModule module;
    EXPECT_TRUE(ModuleById(f.module, &module));
    frames.push_back({false, "", module.path, 0, f.offset, module.build_id});
  }
  Symbolise(frames);
  return frames;
}

TEST_F(SitesTest, OneStackHasOneIdAndAnotherStackAnother) {
  std::vector<SiteId> sites;
  for (int i = 0; i < 3; ++i) sites.push_back(Below(3));
  EXPECT_EQ(sites[0], sites[1]);
  EXPECT_EQ(sites[1], sites[2]);
  const SiteId deeper = Below(4), elsewhere = Below(3);
  EXPECT_NE(deeper, sites[0]);
  EXPECT_NE(elsewhere, sites[0]);  // called from another line
  EXPECT_FALSE(FramesOf(SiteHere(), nullptr));
}

TEST_F(SitesTest, NamesFunctionFileAndLineOfItsFrames) {
  const std::vector<TraceFrame> frames = FramesWithNames(Below(2));
  ASSERT_GE(frames.size(), 5u);
  EXPECT_NE(frames[0].function.find("Here"), std::string::npos) << frames[0].function;
  for (int i = 1; i <= 3; ++i) EXPECT_NE(frames[static_cast<size_t>(i)].function.find("Below"), std::string::npos);
  EXPECT_TRUE(frames[0].file.ends_with("sites_test.cc")) << frames[0].file;
  EXPECT_GT(frames[0].line, 0u);
}

TEST_F(SitesTest, GivesNoNamesFromAnotherBuildOfTheFile) {
  std::vector<SiteFrame> taken;
  ASSERT_TRUE(FramesOf(Here(), &taken));
  LoadedModule module;
  ASSERT_TRUE(ModuleById(taken[0].module, &module));
  ASSERT_FALSE(module.build_id.empty());
  std::vector<TraceFrame> frames = {{false, "", module.path, 0, taken[0].offset, "00" + module.build_id.substr(2)}};
  Symbolise(frames);
  EXPECT_EQ(frames[0].function, "");
}

// Return addresses as the compiler's library unwinds them, and as offsets in modules.
struct BothWays {
  std::vector<uintptr_t> unwound;
  SiteId site = kNoSite;
};
[[gnu::noinline]] void TakeBothWays(BothWays* both) {
  both->unwound.clear();
  both->site = TakeSite();
  _Unwind_Backtrace([](_Unwind_Context* context, void* to) {
    static_cast<std::vector<uintptr_t>*>(to)->push_back(_Unwind_GetIP(context));
    return _URC_NO_REASON;
  }, &both->unwound);
  both->unwound.erase(both->unwound.begin());  // this one, at another call in it than TakeSite's
}
void ExpectTheSame(const BothWays& both) {
  std::vector<SiteFrame> frames;
  ASSERT_TRUE(FramesOf(both.site, &frames));
  // Taken stacks end after 64 frames, and have none of the outermost frame's callers, of which some unwinders show one at 0.
  ASSERT_GE(frames.size(), std::min<size_t>(both.unwound.size(), 60));
  for (size_t i = 1; i < frames.size(); ++i) {
    LoadedModule module;
    ASSERT_TRUE(ModuleById(frames[i].module, &module));
    ASSERT_LE(i, both.unwound.size());
    EXPECT_EQ(module.load_address + frames[i].offset + 1, both.unwound[i - 1]) << "frame " << i << " in " << module.path;
  }
}
// Frames of all shapes: of a size known at run time only, and aligned to more than the stack is.
[[gnu::noinline]] void Shapes(int depth, BothWays* both) {
  const auto room = static_cast<size_t>(depth % 5 + 1) * 24;
  auto* const variable = static_cast<volatile char*>(__builtin_alloca(room));
  alignas(64) volatile char aligned[64];
  variable[0] = static_cast<char>(depth);
  aligned[0] = static_cast<char>(depth);
  if (depth == 0) TakeBothWays(both); else Shapes(depth - 1, both);
  variable[room - 1] = aligned[63];
}

TEST_F(SitesTest, FindsTheFramesThatTheUnwinderFinds) {
  for (const int depth : {0, 1, 7, 30, 100}) {
    BothWays both;
    Shapes(depth, &both);
    ExpectTheSame(both);
  }
  BothWays called_back;  // from the C library
  BothWays* at = &called_back;
  std::array<int, 2> two = {2, 1};
  qsort_r(two.data(), two.size(), sizeof(int), [](const void*, const void*, void* to) { return TakeBothWays(*static_cast<BothWays**>(to)), 0; }, &at);
  ExpectTheSame(called_back);
}

#if !defined(__SANITIZE_THREAD__)  // which objects to the memory of a new stack
TEST_F(SitesTest, TakesAStackInASignalHandler) {
  static BothWays in_handler;
  struct sigaction action = {}, before = {};
  action.sa_handler = [](int) { TakeBothWays(&in_handler); };
  sigaction(SIGUSR1, &action, &before);
  raise(SIGUSR1);
  sigaction(SIGUSR1, &before, nullptr);
  ExpectTheSame(in_handler);
}
#endif

TEST_F(SitesTest, UnwindsAModuleThatTookThePlaceOfAnother) {
  const auto through = [](const char* path) {
    void* const module = dlopen(path, RTLD_NOW);
    EXPECT_NE(module, nullptr) << dlerror();
    if (module == nullptr) return BothWays{};
    BothWays both;
    auto* const call = reinterpret_cast<void (*)(void (*)(void*), void*)>(dlsym(module, "CallBack"));
    call([](void* to) { TakeBothWays(static_cast<BothWays*>(to)); }, &both);
    dlclose(module);
    return both;
  };
  for (int round = 0; round < 3; ++round) {
    ExpectTheSame(through(SMALL_FRAME_MODULE));  // mostly at one address, by other rules
    ExpectTheSame(through(LARGE_FRAME_MODULE));
  }
}

#if !defined(__SANITIZE_THREAD__)  // which knows of no stacks but those of threads
TEST_F(SitesTest, TakesAStackOnAStackOfSomebodysOwnMaking) {
  // A coroutine's: neither its beginning nor its end is the thread's.
  static BothWays in_coroutine;
  static ucontext_t outside, inside;
  std::vector<char> stack(1 << 18);
  ASSERT_EQ(getcontext(&inside), 0);
  inside.uc_stack.ss_sp = stack.data();
  inside.uc_stack.ss_size = stack.size();
  inside.uc_link = &outside;
  makecontext(&inside, +[] { Shapes(3, &in_coroutine); }, 0);
  ASSERT_EQ(swapcontext(&outside, &inside), 0);
  ExpectTheSame(in_coroutine);
}

#endif

TEST_F(SitesTest, TakesAStackOnASmallOne) {
  static BothWays on_small;
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 64 << 10), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, &attributes, [](void*) -> void* { return Shapes(5, &on_small), nullptr; }, nullptr), 0);
  pthread_attr_destroy(&attributes);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  ExpectTheSame(on_small);
}

TEST_F(SitesTest, TakesAStackWhileAThreadEnds) {
  static SiteId at_end = kNoSite;
  struct Last {
    ~Last() { at_end = TakeSite(); }
  };
  pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key, [](void*) { at_end = TakeSite(); }), 0);  // runs after thread_local objects are gone
  std::thread([key] {
    thread_local Last last;
    (void)&last;
    pthread_setspecific(key, &at_end);
  }).join();
  pthread_key_delete(key);
  std::vector<SiteFrame> frames;
  ASSERT_TRUE(FramesOf(at_end, &frames));
  EXPECT_FALSE(frames.empty());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Not under those of GCC 12: a fork while another thread is in their heap leaves that locked for the child.
TEST_F(SitesTest, ForkedChildrenGoOnWhileThreadsMeetNewStacks) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&stop] {
      for (int depth = 0; !stop; depth = (depth + 1) % 50) Below(depth);
    });
  }
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // rather than hang with a lock that nobody has
      std::vector<SiteFrame> frames;
      _exit(FramesOf(Below(round), &frames) && frames.size() > static_cast<size_t>(round) ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}
#endif

TEST_F(SitesTest, EightThreadsThatMeetTheSameStacksGetTheSameIds) {
  std::vector<std::thread> threads;
  std::array<std::vector<SiteId>, 8> found;
  for (auto& sites : found) {
    threads.emplace_back([&sites] {
      for (int round = 0; round < 50; ++round) {
        for (int depth = 0; depth < 60; depth += 7) sites.push_back(Below(depth));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<uint32_t> ids;
  for (const auto& sites : found) {
    for (const SiteId site : sites) {
      ids.insert(site.value());
      std::vector<SiteFrame> frames;
      EXPECT_TRUE(FramesOf(site, &frames));
      EXPECT_FALSE(frames.empty());
    }
  }
  EXPECT_EQ(ids.size(), 9u);  // a depth each: 0, 7, ... 56
}

TEST_F(SitesTest, WaysInAskForASiteOnlyWhileStacksAreOn) {
  EXPECT_NE(CurrentSite(), kNoSite);
  SetStacks(false, false);
  EXPECT_EQ(CurrentSite(), kNoSite);
}

}  // namespace
}  // namespace gpuledger
