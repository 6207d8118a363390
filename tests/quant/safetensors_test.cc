#include "gpuledger/safetensors.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test_files.h"

namespace gpuledger {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

std::span<const std::byte> AsBytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// ---- reading bad files

struct BadFile {
  std::string name;
  std::string content;
  std::string error;  // a part of the message
};
void PrintTo(const BadFile& bad, std::ostream* out) { *out << bad.name; }

std::string Tensor(std::string_view fields) {
  return MakeSafetensors("{\"w\":{" + std::string(fields) + "}}", "01234567");
}

std::vector<BadFile> BadFiles() {
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  const auto header = [](std::string_view json) { return MakeSafetensors(json, "01234567"); };
  const auto two = [](std::string_view a, std::string_view b) {
    return MakeSafetensors(
        R"({"a":{"dtype":"U8",)" + std::string(a) + R"(},"b":{"dtype":"U8",)" + std::string(b) + "}}", "01234567");
  };
  std::string deep_shape = R"("dtype":"U8","data_offsets":[0,8],"shape":[8)";
  for (int i = 0; i < 64; ++i) deep_shape += ",1";
  // clang-format off: one row, one line
  std::vector<BadFile> files = {
      {"Empty", "", "has 0 bytes"},
      {"ShorterThanTheLength", "1234567", "has 7 bytes"},
      {"HeaderLongerThanTheFile", std::string("\x10\0\0\0\0\0\0\0{}", 10),
       "a header of 16 bytes (byte 0 of the file), but only 2"},
      {"HeaderOverTheLimit", std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "100000001 bytes"},
      {"HeaderLengthNearTwoTo64", std::string(8, '\xff') + "{}", "18446744073709551615 bytes"},
      {"NoHeader", MakeSafetensors(""), "does not begin with {"},
      {"HeaderBeginsWithASpace", MakeSafetensors(" {}"), "does not begin with {"},
      {"HeaderIsAnArray", MakeSafetensors("[]"), "does not begin with {"},
      {"JsonEndsEarly", header(R"({"w":{"dtype":)"), "not valid JSON"},
      {"JsonHasTrailingText", header("{} x"), "not valid JSON"},
      {"JsonHasTwoObjects", header("{}{}"), "not valid JSON"},
      {"JsonHasAZeroByteAfterItsEnd", header(std::string_view("{}\0x", 4)), "the header has a zero byte (in the header, byte 10 of the file)"},
      {"JsonHasAComment", header("{/**/}"), "not valid JSON"},
      {"NameIsNotUtf8", header("{\"\xff\":1}"), "ill-formed UTF-8"},
      {"NameIsALoneSurrogate", header(R"({"\ud800":1})"), "surrogate"},
      {"NestedArraysWithoutEnd", header("{\"w\":" + std::string(1 << 20, '[')), "\"w\" is an array"},
      {"NestedObjectsWithoutEnd", header([] {
         std::string json = "{\"w\":{\"shape\":";
         for (int i = 0; i < 200000; ++i) json += "{\"a\":";
         return json;
       }()),
       "has an object as its shape"},
      {"NestedMetadata", header(R"({"__metadata__":{"a":{"b":"c"}}})"), "__metadata__ has an object as \"a\""},
      {"MetadataNumber", header(R"({"__metadata__":{"a":1}})"), "only strings"},
      {"MetadataIsAString", header(R"({"__metadata__":"pt"})"), "\"__metadata__\" is the string"},
      {"DuplicateMetadataKey", header(R"({"__metadata__":{"a":"1","a":"2"}})"), "\"a\" appears twice in __metadata__"},
      {"DuplicateMetadata", header(R"({"__metadata__":{},"__metadata__":{}})"), "\"__metadata__\" appears twice"},
      {"DuplicateName", header("{\"w\":{" + good + "},\"w\":{" + good + "}}"), "\"w\" appears twice"},
      {"DuplicateNameInDisguise", header("{\"w\":{" + good + "},\"\\u0077\":{" + good + "}}"), "\"w\" appears twice"},
      {"DuplicateField", Tensor(R"("dtype":"U8",)" + good), "has dtype twice"},
      {"TensorIsNull", header(R"({"w":null})"), "\"w\" is null"},
      {"UnknownField", Tensor(good + R"(,"strides":[1])"), "the entry \"strides\""},
      {"UnknownDtype", Tensor(R"("dtype":"F5","shape":[2],"data_offsets":[0,8])"),
       "dtype \"F5\", which the format does not know"},
      {"PartOfAByte", Tensor(R"("dtype":"F4","shape":[3,5],"data_offsets":[0,8])"),
       "has shape [3, 5] and dtype F4, whose size is no whole number of bytes"},
      {"MetadataIsNotUtf8", header("{\"__metadata__\":{\"a\":\"\xe2\x28\xa1\"}}"), "ill-formed UTF-8"},
      {"MetadataKeyIsOverlongUtf8", header("{\"__metadata__\":{\"\xc0\xaf\":\"\"}}"), "ill-formed UTF-8"},
      {"MetadataIsASurrogateInUtf8", header("{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}}"), "ill-formed UTF-8"},
      {"DtypeIsANumber", Tensor(R"("dtype":7,"shape":[2],"data_offsets":[0,8])"), "the number 7 as its dtype"},
      {"NoDtype", Tensor(R"("shape":[2],"data_offsets":[0,8])"), "needs dtype, shape and data_offsets"},
      {"NoShape", Tensor(R"("dtype":"F32","data_offsets":[0,8])"), "needs dtype, shape and data_offsets"},
      {"NoOffsets", Tensor(R"("dtype":"F32","shape":[2])"), "needs dtype, shape and data_offsets"},
      {"NegativeDimension", Tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "the number -2 in its shape"},
      {"FractionalDimension", Tensor(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), "\"2.0\" in its shape"},
      {"HugeDimension", Tensor(R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8])"), "in its shape"},
      {"TooManyDimensions", Tensor(deep_shape + "]"), "more than 64 dimensions"},
      {"ShapeIsAString", Tensor(R"("dtype":"F32","shape":"2","data_offsets":[0,8])"), "the string \"2\""},
      {"NestedShape", Tensor(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"), "an array in its shape"},
      {"ShapeOverflows", Tensor(R"("dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,8])"),
       "overflows 64 bits"},
      {"BytesOverflow", Tensor(R"("dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8])"),
       "overflows 64 bits"},
      {"NegativeOffset", Tensor(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])"),
       "the number -8 in its data_offsets"},
      {"HugeOffset", Tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616])"),
       "in its data_offsets"},
      {"LargestOffset", Tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615])"),
       "there are only 8"},
      {"OneOffset", Tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), "needs two data_offsets"},
      {"ThreeOffsets", Tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4,8])"),
       "the number 8 in its data_offsets"},
      {"ReversedOffsets", Tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), "the end before the begin"},
      {"OffsetsBeyondTheData", Tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16])"),
       "ends at byte 16 of the data, but there are only 8"},
      {"ShapeSmallerThanOffsets", Tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"),
       "which is 4 bytes, but data_offsets of 8 bytes"},
      {"ShapeLargerThanOffsets", Tensor(R"("dtype":"F64","shape":[2],"data_offsets":[0,8])"),
       "which is 16 bytes, but data_offsets of 8 bytes"},
      {"Overlap", two(R"("shape":[5],"data_offsets":[0,5])", R"("shape":[4],"data_offsets":[4,8])"),
       "tensor \"b\" overlaps tensor \"a\""},
      {"SameBytesTwice", two(R"("shape":[8],"data_offsets":[0,8])", R"("shape":[8],"data_offsets":[0,8])"),
       "overlaps tensor"},
      {"Hole", two(R"("shape":[3],"data_offsets":[0,3])", R"("shape":[4],"data_offsets":[4,8])"),
       "1 bytes before tensor \"b\""},
      {"HoleAtTheStart", Tensor(R"("dtype":"U8","shape":[7],"data_offsets":[1,8])"), "1 bytes before tensor \"w\""},
      {"TrailingBytes", Tensor(R"("dtype":"U8","shape":[7],"data_offsets":[0,7])"), "1 bytes after the last tensor"},
      {"OnlyTrailingBytes", header("{}"), "8 bytes after the last tensor"},
      {"NameWithTerminalEscapes", header("{\"\\u001b[2J\":1}"), "\"\\u001b[2J\" is the number 1"},
  };
  // clang-format on
  return files;
}

class BadSafetensorsTest : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensorsTest, IsRefusedByName) {
  const TestDirectory directory;
  const std::string path = directory / "model.safetensors";
  WriteFile(path, GetParam().content);
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  ASSERT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
  EXPECT_THAT(std::string(file.status().message()), AllOf(HasSubstr(path), HasSubstr(GetParam().error)));
  EXPECT_LT(file.status().message().size(), 1000u);
}

INSTANTIATE_TEST_SUITE_P(Table, BadSafetensorsTest, ::testing::ValuesIn(BadFiles()),
                         [](const auto& row) { return row.param.name; });

TEST(SafetensorsFileTest, EveryTruncationOfAGoodFileIsRefused) {
  const std::string good = MakeSafetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "01234567");
  const TestDirectory directory;
  for (size_t size = 0; size < good.size(); ++size) {
    WriteFile(directory / "cut", good.substr(0, size));
    EXPECT_EQ(SafetensorsFile::Open(directory / "cut").status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
  WriteFile(directory / "whole", good);
  EXPECT_TRUE(SafetensorsFile::Open(directory / "whole").ok());
}

TEST(SafetensorsFileTest, ErrorsInTheHeaderNameTheByte) {
  const TestDirectory directory;
  const std::string header = R"({"w":{"dtype":"F5")";
  WriteFile(directory / "f", MakeSafetensors(header));
  EXPECT_THAT(std::string(SafetensorsFile::Open(directory / "f").status().message()),
              HasSubstr("byte " + std::to_string(8 + header.size()) + " of the file"));
}

TEST(SafetensorsFileTest, WhatIsNotAFileIsRefused) {
  const TestDirectory directory;
  EXPECT_EQ(SafetensorsFile::Open(directory / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(SafetensorsFile::Open(directory.path()).status().message()), HasSubstr("not a regular file"));
  ASSERT_EQ(::mkfifo((directory / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(std::string(SafetensorsFile::Open(directory / "fifo").status().message()),
              HasSubstr("not a regular file"));
}

// ---- reading good files

TEST(SafetensorsFileTest, GivesTensorsInTheOrderOfTheirBytes) {
  const TestDirectory directory;
  WriteFile(directory / "f", MakeSafetensors(R"({"__metadata__":{"format":"pt"},)"
                                             R"("late":{"dtype":"BF16","shape":[1,2],"data_offsets":[4,8]},)"
                                             R"("none":{"dtype":"I64","shape":[0,7],"data_offsets":[4,4]},)"
                                             R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
                                             "01234567"));
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> names;
  for (const TensorInfo& tensor : file->tensors()) names.push_back(tensor.name);
  EXPECT_THAT(names, ElementsAre("scalar", "none", "late"));
  EXPECT_THAT(file->metadata(), ElementsAre(Pair("format", "pt")));
  EXPECT_EQ(file->Find("absent"), nullptr);
  const TensorInfo* late = file->Find("late");
  ASSERT_NE(late, nullptr);
  EXPECT_EQ(late->elements, 2u);
  EXPECT_EQ(late->size, 4_B);
  std::string data(3, '\0');
  ASSERT_TRUE(file->Read(*late, 1_B, std::as_writable_bytes(std::span(data))).ok());
  EXPECT_EQ(data, "567");
}

TEST(SafetensorsFileTest, ReadsNothingOutsideOfATensor) {
  const TestDirectory directory;
  WriteFile(directory / "f", Tensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8])"));
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.status();
  TensorInfo tensor = file->tensors()[0];
  std::vector<std::byte> out(8);
  EXPECT_TRUE(file->Read(tensor, 0_B, out).ok());
  EXPECT_EQ(file->Read(tensor, 1_B, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->Read(tensor, Bytes::Max(), out).code(), absl::StatusCode::kInvalidArgument);
  tensor.begin = 0;
  EXPECT_EQ(file->Read(tensor, 0_B, out).code(), absl::StatusCode::kInvalidArgument);
  tensor.begin = ~uint64_t{0};
  EXPECT_EQ(file->Read(tensor, 0_B, out).code(), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsFileTest, AFileThatShrinksIsAnError) {
  const TestDirectory directory;
  const std::string content = Tensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8])");
  WriteFile(directory / "f", content);
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::resize_file(directory / "f", content.size() - 3);
  std::vector<std::byte> out(8);
  const absl::Status status = file->Read(file->tensors()[0], 0_B, out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(directory / "f"), HasSubstr("\"w\""),
                                                   HasSubstr("ends at byte " + std::to_string(content.size() - 3))));
}

TEST(SafetensorsFileTest, AFileThatIsWrittenToIsAnErrorOnceATensorIsRead) {
  const TestDirectory directory;
  const std::string content = Tensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8])");
  const auto error = [&](const std::string& path, auto change) {
    WriteFile(path, content);
    std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
    const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    change(path);
    std::vector<std::byte> out(7);
    EXPECT_TRUE(file->Read(file->tensors()[0], 0_B, out).ok()) << "before the tensor's end";
    const absl::Status status = file->Read(file->tensors()[0], 1_B, out);
    return std::string(status.message());
  };
  EXPECT_THAT(error(directory / "grown", [](const std::string& path) { std::ofstream(path, std::ios::app) << "more"; }),
              AllOf(HasSubstr(directory / "grown"), HasSubstr("\"w\": the file was written to while it was read (it had"),
                    HasSubstr("has " + std::to_string(content.size() + 4) + " now")));
  EXPECT_THAT(error(directory / "same", [&](const std::string& path) { WriteFile(path, content); }),
              HasSubstr("was written to while it was read"));
  // Another file under the same name is not the one that is being read.
  EXPECT_EQ(error(directory / "replaced",
                  [&](const std::string& path) {
                    WriteFile(path + ".new", "other");
                    std::filesystem::rename(path + ".new", path);
                  }),
            "");
}

TEST(SafetensorsFileTest, ReadsEveryDtypeOfTheFormat) {
  const std::vector<std::pair<std::string, uint64_t>> bits = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},           {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},  {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},         {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  const TestDirectory directory;
  for (size_t i = 0; i < bits.size(); ++i) {
    const auto& [name, width] = bits[i];
    const std::string size = std::to_string(width / 2);  // of four elements, in bytes
    WriteFile(directory / name, MakeSafetensors("{\"w\":{\"dtype\":\"" + name + R"(","shape":[2,2],"data_offsets":[0,)" +
                                                    size + "]}}", std::string(width / 2, 'x')));
    const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory / name);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->tensors()[0].dtype, static_cast<Dtype>(i));
    EXPECT_EQ(DtypeName(file->tensors()[0].dtype), name);
    EXPECT_EQ(DtypeBits(file->tensors()[0].dtype), width);
    EXPECT_EQ(file->tensors()[0].elements, 4u);
  }
}

TEST(SafetensorsFileTest, IsReadByManyThreads) {
  const TestDirectory directory;
  WriteFile(directory / "f", Tensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8])"));
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        std::string out(2, '\0');
        ASSERT_TRUE(
            file->Read(file->tensors()[0], Bytes(unsigned(i % 7)), std::as_writable_bytes(std::span(out))).ok());
        ASSERT_EQ(out[0], '0' + i % 7);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- writing

const std::vector<TensorSpec> kTwoTensors = {{"b", Dtype::kF32, {2}}, {"a/é\n", Dtype::kU8, {3, 1}}};

TEST(SafetensorsWriterTest, WhatIsWrittenIsRead) {
  const TestDirectory directory;
  const std::string path = directory / "out.safetensors";
  {
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(path, kTwoTensors, {{"format", "pt"}, {"k", "v"}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(writer->Append(AsBytes("0123")).ok());
    ASSERT_TRUE(writer->Append(AsBytes("4567ab")).ok());
    ASSERT_TRUE(writer->Append(AsBytes("c")).ok());
    EXPECT_FALSE(std::filesystem::exists(path));
    ASSERT_TRUE(writer->Finish().ok());
  }
  EXPECT_THAT(directory.Names(), ElementsAre("out.safetensors"));
  const std::string content = ReadFile(path);
  EXPECT_EQ((content.size() - 11) % 8, 0u);
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->metadata(), ElementsAre(Pair("format", "pt"), Pair("k", "v")));
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->tensors()[0].name, "b");
  EXPECT_THAT(file->tensors()[1].shape, ElementsAre(3, 1));
  std::string data(3, '\0');
  ASSERT_TRUE(file->Read(*file->Find("a/é\n"), 0_B, std::as_writable_bytes(std::span(data))).ok());
  EXPECT_EQ(data, "abc");
}

TEST(SafetensorsWriterTest, TooMuchAndTooLittleDataAreErrors) {
  const TestDirectory directory;
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(directory / "f", kTwoTensors, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_EQ(writer->Append(AsBytes("0123456789ab")).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(writer->Append(AsBytes("0123456789")).ok());
  const absl::Status missing = writer->Finish();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("1 of "));
  EXPECT_FALSE(std::filesystem::exists(directory / "f"));
}

TEST(SafetensorsWriterTest, WhatCannotBeWrittenIsRefusedBeforeAnythingIs) {
  const TestDirectory directory;
  const auto create = [&](const std::vector<TensorSpec>& tensors,
                          const std::vector<std::pair<std::string, std::string>>& metadata) {
    return SafetensorsWriter::Create(directory / "f", tensors, metadata).status().code();
  };
  constexpr uint64_t kHuge = uint64_t{1} << 62;
  EXPECT_EQ(create({{"a", Dtype::kU8, {1}}, {"a", Dtype::kU8, {1}}}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({{"__metadata__", Dtype::kU8, {1}}}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({{"\xff", Dtype::kU8, {1}}}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({{"a", Dtype::kF64, {kHuge}}}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({{"a", Dtype::kU16, {kHuge}}, {"b", Dtype::kU16, {kHuge}}}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({}, {{"k", "1"}, {"k", "2"}}), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(directory.Names(), IsEmpty());
}

TEST(SafetensorsWriterTest, NeverReplacesAFile) {
  const TestDirectory directory;
  WriteFile(directory / "f", "precious");
  EXPECT_EQ(SafetensorsWriter::Create(directory / "f", {}, {}).status().code(), absl::StatusCode::kAlreadyExists);

  // ... not even one that appears while the writer is at work.
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(directory / "g", {}, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  WriteFile(directory / "g", "precious");
  const absl::Status status = writer->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
  EXPECT_EQ(ReadFile(directory / "g"), "precious");
}

TEST(SafetensorsWriterTest, AnAbandonedWriterLeavesNothing) {
  const TestDirectory directory;
  {
    absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(directory / "f", kTwoTensors, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(writer->Append(AsBytes("0123")).ok());
  }
  EXPECT_THAT(directory.Names(), IsEmpty());
}

TEST(SafetensorsWriterTest, AKilledWriterLeavesNothingUnderTheName) {
  const TestDirectory directory;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(directory / "f", kTwoTensors, {});
    if (writer.ok() && writer->Append(AsBytes("0123456789a")).ok()) ::raise(SIGKILL);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(std::filesystem::exists(directory / "f"));
  for (const std::string& name : directory.Names()) EXPECT_EQ(name[0], '.') << name;
}

TEST(SafetensorsWriterTest, AFullDiskIsAnErrorThatNamesFileAndBytes) {
  // A file size limit stands for the full disk; it needs no rights. SIGXFSZ would kill the process.
  const TestDirectory directory;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const rlimit limit{1024, old_limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(directory / "f", {{"a", Dtype::kU8, {4096}}}, {});
  const absl::Status status = writer.ok() ? writer->Append(std::vector<std::byte>(4096)) : writer.status();
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(directory / "f"), HasSubstr("bytes after 1024")));
  writer = absl::CancelledError();
  EXPECT_THAT(directory.Names(), IsEmpty());
}

TEST(SafetensorsWriterTest, ADirectoryThatIsNotThereIsNamed) {
  const TestDirectory directory;
  const absl::Status status = SafetensorsWriter::Create(directory / "no/f", {}, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/"));
}

}  // namespace
}  // namespace gpuledger
