// Sites: one id for one stack, frames with names when they are asked for.
#include "gpuledger/sites.h"

#include <gtest/gtest.h>

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

TEST_F(SitesTest, SurvivesStacksOfSomebodysOwnMaking) {
  // Deep recursion on a small stack, and many threads that meet the same stacks for the first time.
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
  for (const auto& sites : found) {
    for (const SiteId site : sites) {
      std::vector<SiteFrame> frames;
      EXPECT_TRUE(FramesOf(site, &frames));
      EXPECT_FALSE(frames.empty());
    }
  }
}

TEST_F(SitesTest, WaysInAskForASiteOnlyWhileStacksAreOn) {
  EXPECT_NE(CurrentSite(), kNoSite);
  SetStacks(false, false);
  EXPECT_EQ(CurrentSite(), kNoSite);
}

}  // namespace
}  // namespace gpuledger
