#include "gpuledger/owner.h"
#include "gpuledger/layer_names.h"
#include "gpuledger/payer_source.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace gpuledger {
namespace {

TEST(OwnerTest, InternsEqualPathsOnce) {
  EXPECT_EQ(InternOwner("model/a"), InternOwner(std::string("model/") + "a"));
  EXPECT_NE(InternOwner("model/a"), InternOwner("model/b"));
  EXPECT_EQ(OwnerName(InternOwner("model/a")), "model/a");
  EXPECT_EQ(InternOwner(""), kUnattributed);
  EXPECT_EQ(OwnerName(kUnattributed), "unattributed");
}

TEST(OwnerTest, GlobStarStaysWithinOneNameAndDoubleStarCrosses) {
  EXPECT_TRUE(OwnerMatches("model/*", "model/layers"));
  EXPECT_FALSE(OwnerMatches("model/*", "model/layers.3"));
  EXPECT_TRUE(OwnerMatches("model/**", "model/layers.3.mlp.up_proj.weight"));
  EXPECT_TRUE(OwnerMatches("**.weight", "model/layers.3.mlp.up_proj.weight"));
  EXPECT_TRUE(OwnerMatches("model/layers.*.mlp.*.weight", "model/layers.3.mlp.up_proj.weight"));
  EXPECT_FALSE(OwnerMatches("model/layers.*.weight", "model/layers.3.mlp.weight"));
  EXPECT_TRUE(OwnerMatches("a**b*c", "a.x.b-b.bzc"));
  EXPECT_TRUE(OwnerMatches("**", ""));
  EXPECT_FALSE(OwnerMatches("", "a"));
  EXPECT_FALSE(OwnerMatches(std::string(30, '*') + "b", std::string(3000, 'a')));  // and at once
}

TEST(OwnerScopeTest, NestsByPathAndTakesTheInnermostRole) {
  EXPECT_EQ(CurrentPayer().owner, kUnattributed);
  OwnerScope model("model", Role::kSource);
  {
    OwnerScope layer("layers.3", Role::kStaging);
    EXPECT_EQ(OwnerName(CurrentPayer().owner), "model/layers.3");
    EXPECT_EQ(CurrentPayer().role, Role::kStaging);
  }
  EXPECT_EQ(OwnerName(CurrentPayer().owner), "model");
  OwnerScope same("", Role::kCache);
  EXPECT_EQ(OwnerName(CurrentPayer().owner), "model");
}

TEST(OwnerScopeTest, BelongsToOneThreadAndIsAdoptedByAnother) {
  OwnerScope scope("model/loader", Role::kStaging);
  const Payer captured = CurrentPayer();
  std::thread([captured] {
    EXPECT_EQ(CurrentPayer().owner, kUnattributed);
    OwnerScope adopted(captured);
    EXPECT_EQ(OwnerName(CurrentPayer().owner), "model/loader");
    EXPECT_EQ(CurrentPayer().role, Role::kStaging);
  }).join();
}

TEST(OwnerScopeTest, ATransientScopeReachesNestedScopesAndThreadsThatAdoptItAndEndsOnce) {
  ScopeId seen{0};
  {
    OwnerScope outer("outer", Role::kOther);
    EXPECT_EQ(CurrentPayer().scope, ScopeId(0));
    OwnerScope step = OwnerScope::Transient("step", Role::kScratch);
    seen = CurrentPayer().scope;
    EXPECT_NE(seen, ScopeId(0));
    EXPECT_EQ(OwnerName(CurrentPayer().owner), "outer/step");
    {
      OwnerScope nested("nested", Role::kOther);
      EXPECT_EQ(CurrentPayer().scope, seen);
      OwnerScope inner = OwnerScope::Transient("inner", Role::kOther);
      EXPECT_NE(CurrentPayer().scope, seen);
    }
    std::thread([payer = CurrentPayer(), seen] {
      EXPECT_EQ(CurrentPayer().scope, ScopeId(0));
      OwnerScope adopted(payer);
      EXPECT_EQ(CurrentPayer().scope, seen);
    }).join();
    EXPECT_FALSE(ScopeEnded(seen)) << "an adopted scope that ends elsewhere does not end it";
  }
  EXPECT_TRUE(ScopeEnded(seen));
  EXPECT_FALSE(ScopeEnded(ScopeId(0)));
}

TEST(OwnerScopeTest, JoinsTheRightPathWhenManyTakeTurns) {
  for (int round = 0; round < 2; ++round) {  // more than a thread remembers, so that they push each other out
    for (int i = 0; i < 300; ++i) {
      const std::string outer = "o" + std::to_string(i % 3), path = "p" + std::to_string(i);
      OwnerScope around(outer, Role::kOther);
      OwnerScope scope(path, Role::kOther);
      ASSERT_EQ(OwnerName(CurrentPayer().owner), outer + "/" + path);
    }
  }
}

// Whom this thread works for, and where it publishes what it pays as.
class TestPayerSource final : public PayerSource {
 public:
  TestPayerSource() { SetPayerSource(this); }
  ~TestPayerSource() override { SetPayerSource(nullptr); }
  Payer WithoutScope() noexcept override { return carried; }
  PublishedPayer* ScopeEntered() noexcept override {
    ++entered;
    return publish ? &published : nullptr;
  }
  Payer carried{InternOwner("caller"), Role::kScratch, ScopeId(7)};
  PublishedPayer published;
  bool publish = true;
  int entered = 0;
};

TEST(PayerSourceTest, SaysWhomAThreadWithoutAScopePaysAsAndWhatItsScopesNestIn) {
  const TestPayerSource source;
  EXPECT_EQ(OwnerName(CurrentPayer().owner), "caller");
  EXPECT_EQ(CurrentPayer().role, Role::kScratch);
  {
    const OwnerScope scope("own", Role::kCache);
    EXPECT_EQ(OwnerName(CurrentPayer().owner), "caller/own");
    EXPECT_EQ(CurrentPayer().scope, ScopeId(7));
  }
  const OwnerScope nobody{Payer{}};  // adopted as it is
  EXPECT_EQ(CurrentPayer().owner, kUnattributed);
}

TEST(PayerSourceTest, SeesTheInnermostScopeUntilTheThreadHasLeftTheOutermost) {
  TestPayerSource source;
  source.carried = {};
  const auto published = [&source] { return OwnerName(source.published.Get().owner); };
  {
    const OwnerScope outer("outer", Role::kStaging);
    EXPECT_EQ(published(), "outer");
    {
      const OwnerScope inner("inner", Role::kGradient);
      EXPECT_EQ(published(), "outer/inner");
      EXPECT_EQ(source.published.Get().role, Role::kGradient);
    }
    EXPECT_EQ(published(), "outer");
  }
  EXPECT_EQ(published(), "unattributed");
  EXPECT_EQ(source.entered, 1);
}

TEST(PayerSourceTest, GetsNothingWhereItWantsNothingOrNoMore) {
  TestPayerSource source;
  source.publish = false;
  { const OwnerScope scope("unseen", Role::kOther); }
  source.publish = true;
  const OwnerScope outer("seen", Role::kOther);
  StopPublishing();
  const OwnerScope inner("after", Role::kOther);
  EXPECT_EQ(OwnerName(source.published.Get().owner), "caller/seen");
}

TEST(OwnerScopeDeathTest, EndsTheProgramWhenScopesEndOutOfOrder) {
  EXPECT_DEATH(
      {
        std::optional<OwnerScope> outer(std::in_place, "outer", Role::kOther);
        OwnerScope inner("inner", Role::kOther);
        outer.reset();
      },
      "reverse order");
}

TEST(LayerNamesTest, SplitsAtTheFirstNumberAndJoinsLayersAsRanges) {
  EXPECT_EQ(SplitLayer("layers.3.experts.7.up"), (std::pair<std::string, std::string>("layers.{}.experts.7.up", "3")));
  EXPECT_EQ(SplitLayer("embed.weight"), (std::pair<std::string, std::string>("embed.weight", "")));
  EXPECT_EQ(SplitLayer(""), (std::pair<std::string, std::string>("", "")));
  EXPECT_EQ(JoinLayers("layers.{}.up", {"2", "0", "1", "7"}), "layers.{0-2,7}.up");
  EXPECT_EQ(JoinLayers("layers.{}.up", {"3"}), "layers.3.up");
  EXPECT_EQ(JoinLayers("embed", {}), "embed");
}

TEST(SiteTest, NamesTheLineThatAsked) {
  const SiteId site = SiteHere();
  EXPECT_EQ(SiteName(site).substr(0, 14), "owner_test.cc:");
  EXPECT_EQ(SiteName(kNoSite), "");
}

TEST(OwnerTest, InternsFromManyThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 500; ++i) {
        const std::string name = "shared/" + std::to_string(i);
        ASSERT_EQ(OwnerName(InternOwner(name)), name);
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace
}  // namespace gpuledger
