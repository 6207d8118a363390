#include "allocation_trace.h"

#include <string>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trace_file.h"

namespace gpuledger::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::Status Read(const TraceFile& file) { return replay::ReadAllocationTrace(file.path()).status(); }

TEST(AllocationTraceTest, JoinsRowsByIdAndCountsTimeFromTheFirst) {
  const replay::AllocationTrace trace = TraceOf("a,70,512,4,100\na,9,100,2,100\nr,70,512,4,107\nc,70,512,4,107\n");
  ASSERT_EQ(trace.rows.size(), 4u);
  ASSERT_EQ(trace.allocations.size(), 2u);
  EXPECT_EQ(trace.streams, 2u);
  EXPECT_EQ(trace.allocations[0].size, 512_B);
  EXPECT_EQ(trace.allocations[0].stream, 0u) << "streams are numbered as they appear";
  EXPECT_EQ(trace.allocations[1].stream, 1u);
  EXPECT_EQ(trace.rows[2].allocation, 0u);
  EXPECT_EQ(trace.rows[0].time_us, 0u);
  EXPECT_EQ(trace.duration_us(), 7u);
}

TEST(AllocationTraceTest, PeakRequestedCountsFromAllocationToTheRequestedFree) {
  // 100 + 50, then 50 + 120 although the first is not complete; completion changes nothing.
  const replay::AllocationTrace trace =
      TraceOf("a,0,100,0,1\na,1,50,0,2\nr,0,100,0,3\na,2,120,0,4\nc,0,100,0,5\nr,2,120,0,6\nc,2,120,0,7\n");
  EXPECT_EQ(trace.peak_requested, 170_B);
}

TEST(AllocationTraceTest, ABlockIsUsedElsewhereIfOtherRowsLieBeforeItsCompletion) {
  const replay::AllocationTrace trace =
      TraceOf("a,0,1,0,1\na,1,2,0,1\nr,0,1,0,2\nr,1,2,0,2\nc,1,2,0,9\nc,0,1,0,9\n");
  EXPECT_TRUE(trace.allocations[0].used_elsewhere);
  EXPECT_FALSE(trace.allocations[1].used_elsewhere) << "its completion is the next row, if later by the clock";
}

TEST(AllocationTraceTest, TakesALastLineWithoutItsEndAndCarriageReturns) {
  TraceFile file("a,0,100,0,1\r\na,1,50,0,2", "op,id,size,stream,time_us\r\n");
  EXPECT_EQ(replay::ReadAllocationTrace(file.path()).value().rows.size(), 2u);
}

struct BadRows {
  const char* name;
  std::string rows;
  int line;
  const char* says;
  friend std::ostream& operator<<(std::ostream& out, const BadRows& bad) { return out << bad.name; }
};

class BadRowsTest : public ::testing::TestWithParam<BadRows> {};

TEST_P(BadRowsTest, AreRefusedWithFileLineAndReason) {
  const TraceFile file(GetParam().rows);
  const absl::Status status = Read(file);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string said(status.message());
  EXPECT_THAT(said, StartsWith(fmt::format("{}, line {}: ", file.path(), GetParam().line)));
  EXPECT_THAT(said, HasSubstr(GetParam().says));
}

const BadRows kBadRows[] = {
    {"UnknownOp", "a,0,1,0,1\nx,0,1,0,2\n", 3, "op is 'x'"},
    {"EmptyOp", ",0,1,0,2\n", 2, "op is ''"},
    {"FreeOfAnUnknownId", "a,0,1,0,1\nr,1,1,0,2\n", 3, "id 1 was not allocated before"},
    {"CompletionOfAnUnknownId", "c,1,1,0,2\n", 2, "id 1 was not allocated before"},
    {"SecondFree", "a,0,1,0,1\nr,0,1,0,2\nr,0,1,0,3\n", 4, "id 0 is freed a second time"},
    {"FreeAfterCompletion", "a,0,1,0,1\nr,0,1,0,2\nc,0,1,0,2\nr,0,1,0,3\n", 5, "id 0 is freed a second time"},
    {"SecondCompletion", "a,0,1,0,1\nr,0,1,0,2\nc,0,1,0,2\nc,0,1,0,3\n", 5, "id 0 completes a second time"},
    {"CompletionWithoutFree", "a,0,1,0,1\nc,0,1,0,2\n", 3, "was not freed"},
    {"SecondAllocation", "a,0,1,0,1\na,0,1,0,2\n", 3, "id 0 is allocated a second time"},
    {"IdUsedAgain", "a,0,1,0,1\nr,0,1,0,2\nc,0,1,0,2\na,0,1,0,2\n", 5, "id 0 is allocated a second time"},
    {"SizeZero", "a,0,0,0,1\n", 2, "the size is 0; an allocation has 1 to 2^62 bytes"},
    {"SizeTwoToThe63", "a,0,9223372036854775808,0,1\n", 2, "the size is 9223372036854775808"},
    {"SizeTwoToThe64", "a,0,18446744073709551616,0,1\n", 2, "size is '18446744073709551616', which is not a whole number"},
    {"SizesThatAddUpTo63Bits", "a,0,4611686018427387904,0,1\na,1,1,0,1\n", 3, "more than 2^62 bytes are in use"},
    {"SizeNegative", "a,0,-5,0,1\n", 2, "size is '-5'"},
    {"SizeWithAPoint", "a,0,1.5,0,1\n", 2, "size is '1.5'"},
    {"SizeEmpty", "a,0,,0,1\n", 2, "size is ''"},
    {"SizeWithASpace", "a,0, 5,0,1\n", 2, "size is ' 5'"},
    {"SizeThatChanges", "a,0,5,0,1\nr,0,6,0,2\n", 3, "another size or stream"},
    {"StreamThatChanges", "a,0,5,0,1\na,1,5,1,1\nr,0,5,1,2\n", 4, "another size or stream"},
    {"IdOfLetters", "a,zero,5,0,1\n", 2, "id is 'zero'"},
    {"StreamOfLetters", "a,0,5,main,1\n", 2, "stream is 'main'"},
    {"TimeOfLetters", "a,0,5,0,now\n", 2, "time_us is 'now'"},
    {"TimeOfNoClock", "a,0,5,0,18446744073709551615\n", 2, "time_us is '18446744073709551615'"},
    {"TimeThatGoesBack", "a,0,1,0,5\na,1,1,0,4\n", 3, "time goes back, from 5 us to 4 us"},
    {"FourColumns", "a,0,1,0\n", 2, "the number of columns is 4; it is 5"},
    {"SixColumns", "a,0,1,0,1,\n", 2, "the number of columns is 6"},
    {"EmptyLine", "a,0,1,0,1\n\na,1,1,0,1\n", 3, "the number of columns is 1"},
    {"LongLine", "a,0,1,0,1\n" + std::string(300'000, '1'), 3, "more than 256 characters"},
    {"NoRows", "", 2, "no rows"},
};

INSTANTIATE_TEST_SUITE_P(, BadRowsTest, ::testing::ValuesIn(kBadRows), [](const auto& bad) { return bad.param.name; });

TEST(AllocationTraceTest, AMissingHeaderIsTheFirstLinesFault) {
  for (const char* header : {"", "id,op,size,stream,time_us\n", "op,id,size,stream\n"}) {
    EXPECT_THAT(std::string(Read(TraceFile("a,0,1,0,1\n", header)).message()), HasSubstr(", line 1: the header is missing"));
  }
  EXPECT_THAT(std::string(Read(TraceFile("", "")).message()), HasSubstr(", line 1: the header is missing"));
}

std::string ManyRows() {
  std::string rows;
  for (int i = 0; i < 20'000; ++i) rows += fmt::format("a,{},{},0,{}\n", i, i * 7919 % 65536 + 1, i);
  return rows;
}

TEST(AllocationTraceTest, WhateverIsCutOffTheEndIsNoticed) {
  const TraceFile file(ManyRows());
  const std::string whole = file.bytes();
  for (const size_t left : {size_t{1}, size_t{9}, size_t{12}, whole.size() / 2, whole.size() - 9, whole.size() - 8, whole.size() - 1}) {
    file.Replace(whole.substr(0, left));
    const absl::Status status = Read(file);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << left;
    EXPECT_THAT(std::string(status.message()), HasSubstr(left == 1 ? "line 1: " : "truncated")) << left;
    EXPECT_THAT(std::string(status.message()), HasSubstr(", line ")) << left;
  }
}

TEST(AllocationTraceTest, ADamagedFileNamesTheLineThatCouldNotBeRead) {
  const TraceFile file(ManyRows());
  std::string bytes = file.bytes();
  bytes[bytes.size() - 6] ^= 1;  // the checksum
  file.Replace(bytes);
  EXPECT_THAT(std::string(Read(file).message()), HasSubstr("the gzip file is damaged"));
}

TEST(AllocationTraceTest, PlainTextAnEmptyFileAndAFolderAreNoTraces) {
  const TraceFile file("");
  for (const std::string content : {"op,id,size,stream,time_us\na,0,1,0,1\n", "", "\x1f"}) {
    file.Replace(content);
    EXPECT_EQ(Read(file).code(), absl::StatusCode::kInvalidArgument) << content;
    EXPECT_THAT(std::string(Read(file).message()), HasSubstr("line 1: not a gzip file")) << content;
  }
  EXPECT_EQ(replay::ReadAllocationTrace("/").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(replay::ReadAllocationTrace("/nowhere/at.all").status().code(), absl::StatusCode::kNotFound);
}

TEST(AllocationTraceTest, StopsWhenItIsToldTo) {
  std::string rows;
  for (int i = 0; i < 70'000; ++i) rows += fmt::format("a,{},1,0,1\n", i);
  const auto trace = replay::ReadAllocationTrace(TraceFile(rows).path(), [](Bytes, Bytes) { return false; });
  EXPECT_EQ(trace.status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace gpuledger::testing
