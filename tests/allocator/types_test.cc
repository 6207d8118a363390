#include "gpuledger/types.h"

#include <gtest/gtest.h>

#include <type_traits>

namespace gpuledger {
namespace {

// What must not compile, as constraints with negative answers; must_not_compile.cc has what only a compiler run can tell.
template <class A, class B>
concept Addable = requires(A a, B b) { a + b; };
static_assert(Addable<Bytes, Bytes> && !Addable<Bytes, int> && !Addable<Bytes, uint64_t>);
static_assert(!std::is_convertible_v<uint64_t, Bytes> && !std::is_constructible_v<Bytes, int>);
static_assert(!std::is_convertible_v<Bytes, uint64_t>);
static_assert(Addable<DevicePtr, Bytes> && !Addable<DevicePtr, uint64_t> && !Addable<DevicePtr, DevicePtr>);
static_assert(!std::is_constructible_v<Stream, DeviceId, std::nullptr_t> && !std::is_constructible_v<Stream, DeviceId, int>);
static_assert(!std::is_default_constructible_v<Stream> && !std::is_default_constructible_v<DeviceId>);
static_assert(!std::is_constructible_v<SizeClass, Bytes, int>);
static_assert(!std::is_same_v<OwnerId, SiteId> && !std::is_convertible_v<OwnerId, SiteId>);

TEST(BytesTest, AddsMultipliesAndRounds) {
  EXPECT_EQ(4_KiB + 96_B, Bytes(4192u));
  EXPECT_EQ(3_MiB / 1_MiB, 3u);
  EXPECT_EQ((1_KiB * 3u).RoundUpTo(2_KiB), 4_KiB);
  EXPECT_EQ(Bytes(0u).RoundUpTo(512_B), Bytes(0u));
  EXPECT_EQ(Bytes(1023u).RoundDownTo(512_B), 512_B);
  EXPECT_EQ(ToString(1536_KiB), "1,572,864 B");
}

TEST(BytesDeathTest, EndsTheProgramOnOverflow) {
  EXPECT_DEATH((void)(Bytes::Max() + 1_B), "addition overflows");
  EXPECT_DEATH((void)(1_B - 2_B), "below zero");
  EXPECT_DEATH((void)(Bytes::Max() * 2u), "multiplication overflows");
}

TEST(DevicePtrTest, MovesByBytesAndKeepsItsDevice) {
  const DevicePtr p(DeviceId{1}, 4096);
  EXPECT_EQ((p + 512_B).address(), 4608u);
  EXPECT_EQ((p + 512_B) - p, 512_B);
  EXPECT_DEATH((void)(p - DevicePtr(DeviceId{0}, 0)), "two devices");
}

TEST(SizeClassTest, RoundsToTheGranuleAndNeverShrinksItsBin) {
  EXPECT_EQ(SizeClass::For(1_B).charged(), 512_B);
  EXPECT_EQ(SizeClass::For(512_B).charged(), 512_B);
  EXPECT_EQ(SizeClass::For(513_B).charged(), 1024_B);
  int last = 0;
  for (Bytes size = 512_B; size < 64_MiB; size += 512_B) {
    const int bin = SizeClass::BinOf(size);
    ASSERT_TRUE(bin == last || bin == last + 1) << ToString(size);
    last = bin;
  }
}

TEST(RoleTest, NamesAndParsesEachRole) {
  for (int i = 0; i < kRoleCount; ++i) {
    Role parsed = Role::kOther;
    EXPECT_TRUE(ParseRole(RoleName(static_cast<Role>(i)), &parsed));
    EXPECT_EQ(static_cast<int>(parsed), i);
  }
  Role untouched = Role::kCache;
  EXPECT_FALSE(ParseRole("weights", &untouched));
  EXPECT_EQ(untouched, Role::kCache);
}

}  // namespace
}  // namespace gpuledger
