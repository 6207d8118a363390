#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "gpuledger/allocator.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;

TEST(ParseBytesTest, ReadsWhatPeopleWrite) {
  EXPECT_EQ(*ParseBytes("4096"), 4096_B);
  EXPECT_EQ(*ParseBytes("8MiB"), 8_MiB);
  EXPECT_EQ(*ParseBytes("1.5GiB"), 1536_MiB);
  EXPECT_EQ(*ParseBytes("2GB"), Bytes(2'000'000'000u));
  EXPECT_EQ(*ParseBytes("2 GB"), Bytes(2'000'000'000u));
  EXPECT_EQ(*ParseBytes("9007199254740993"), Bytes(9007199254740993u));
}

TEST(ParseBytesTest, NamesWhatItCannotRead) {
  for (const char* bad : {"", "MiB", "-1", "8 M", "8MiBs", "nan", "inf", "99999999999999TiB", "1e3"}) {
    EXPECT_THAT(std::string(ParseBytes(bad).status().message()), HasSubstr(std::string("'") + bad + "' is not a size")) << bad;
  }
}

class OptionsTest : public ::testing::Test {
 protected:
  ~OptionsTest() override {
    for (const char* name : {"GPULEDGER_CAP", "GPULEDGER_ON_MISUSE", "GPULEDGER_KAP", "GPULEDGER_RELEASE_AFTER",
                             "GPULEDGER_REPORT_OWNERS", "GPULEDGER_TEST_SEED"}) {
      unsetenv(name);
    }
  }
};

TEST_F(OptionsTest, ReadsTheEnvironment) {
  setenv("GPULEDGER_CAP", "6MiB", 1);
  setenv("GPULEDGER_ON_MISUSE", "warn", 1);
  setenv("GPULEDGER_RELEASE_AFTER", "90", 1);
  setenv("GPULEDGER_REPORT_OWNERS", "3", 1);
  const absl::StatusOr<AllocatorOptions> options = AllocatorOptions::FromEnvironment();
  EXPECT_EQ(options->cap, 6_MiB);
  EXPECT_EQ(options->on_misuse, OnMisuse::kWarn);
  EXPECT_EQ(options->release_after, std::chrono::seconds(90));
  EXPECT_EQ(options->report_owners, 3u);
}

TEST_F(OptionsTest, LetsTheVariablesOfTheTestsPass) {
  setenv("GPULEDGER_TEST_SEED", "1", 1);
  EXPECT_TRUE(AllocatorOptions::FromEnvironment().ok());
}

TEST_F(OptionsTest, ReportsAnUnknownNameAndListsTheKnownOnes) {
  setenv("GPULEDGER_KAP", "6MiB", 1);
  const std::string message(AllocatorOptions::FromEnvironment().status().message());
  EXPECT_THAT(message, HasSubstr("GPULEDGER_KAP is not a variable of gpuledger"));
  EXPECT_THAT(message, HasSubstr("GPULEDGER_CAP = a size such as 8GiB"));
}

TEST_F(OptionsTest, ReportsABadValueWithWhatItTakes) {
  setenv("GPULEDGER_ON_MISUSE", "explode", 1);
  EXPECT_EQ(std::string(AllocatorOptions::FromEnvironment().status().message()),
            "GPULEDGER_ON_MISUSE: 'explode' is neither abort nor warn; it takes abort or warn: what a double free or a foreign "
            "pointer does");
}

}  // namespace
}  // namespace gpuledger
