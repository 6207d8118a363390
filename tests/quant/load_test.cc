// The load: bytes, prediction and measurement, the cap, the four assertions, and each of them failing by name.
#include "gpuledger/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>

#include "gpuledger/codec.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/host_upstream.h"
#include "test_checkpoint.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;

class LoadTest : public ::testing::Test {
 protected:
  std::string Model(const std::vector<TensorSpec>& tensors) {
    const std::string path = directory_ / ("model" + std::to_string(models_++));
    WriteModel(path, tensors);
    return path;
  }

  TestDirectory directory_;
  int models_ = 0;
  HostAnonymousUpstream upstream_;
};

const std::byte* DataOf(const LoadedWeight& weight) {
  return static_cast<const std::byte*>(weight.block.ptr().unsafe_host_pointer());
}

// A quantized weight's block, made by the codec from the whole weight at once.
std::vector<std::byte> BlockOf(const FourBitLayout& layout, FloatType type, const std::vector<std::byte>& source) {
  std::vector<std::byte> block(layout.size.count());
  const auto at = [&](Bytes offset) { return block.data() + offset.count(); };
  std::vector<float> absmax(layout.blocks);
  Quantize4Bit(layout.format, Dialect::kCpu, type, source.data(), layout.elements,
               {reinterpret_cast<uint8_t*>(block.data()), PackedBytes(layout.elements).count()}, absmax);
  std::memcpy(at(layout.table_at), CodeTable(layout.format.type).data(), 64);
  if (!layout.format.double_quant) {
    std::memcpy(at(layout.absmax_at), absmax.data(), 4 * absmax.size());
    return block;
  }
  const float offset = AbsmaxOffset(absmax);
  std::vector<float> nested(layout.nested_blocks);
  QuantizeAbsmax(Dialect::kCpu, absmax, offset, {reinterpret_cast<uint8_t*>(at(layout.absmax_at)), layout.blocks}, nested);
  std::memcpy(at(layout.nested_absmax_at), nested.data(), 4 * nested.size());
  std::memcpy(at(layout.offset_at), &offset, 4);
  std::memcpy(at(layout.nested_table_at), NestedTable().data(), 1024);
  return block;
}

// Each block is what the codec, or the file, has for the whole weight at once.
void ExpectRightBytes(const LoadPlan& plan, const LoadedModel& model) {
  for (const LoadedWeight& weight : model.weights()) {
    const TensorInfo& tensor = weight.tensor;
    std::vector<std::byte> expected(tensor.size.count());
    ASSERT_TRUE(plan.source->Read(tensor, Bytes(), expected).ok());
    if (weight.quantized) {
      const FloatType type = tensor.dtype == Dtype::kF32   ? FloatType::kFloat32
                             : tensor.dtype == Dtype::kF16 ? FloatType::kFloat16
                                                           : FloatType::kBFloat16;
      expected = BlockOf(weight.layout(), type, expected);
    }
    const bool equal = expected.empty() || std::memcmp(DataOf(weight), expected.data(), expected.size()) == 0;
    EXPECT_TRUE(equal) << tensor.name;
  }
}

void ExpectAllHolds(const LoadResult& result) {
  EXPECT_TRUE(result.as_predicted()) << ToString(result.peak_bytes) << " reserved, "
                                     << ToString(result.predicted_peak_bytes) << " predicted; in use "
                                     << ToString(result.in_use_peak_bytes) << ", "
                                     << ToString(result.predicted_in_use_bytes) << " predicted";
  for (const LoadFailure& failure : result.failures) ADD_FAILURE() << failure.message;
  EXPECT_TRUE(result.residual_bytes.is_zero());
  EXPECT_TRUE(result.ownerless_bytes.is_zero());
  EXPECT_EQ(result.staging_peak_bytes, result.staging_budget_bytes);
}

TEST_F(LoadTest, MeasuresWhatWasPredictedAndHoldsTheRightBytes) {
  std::vector<std::vector<TensorSpec>> models;
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBF16}) models.push_back(TinyModel(dtype));
  models.push_back(TinyModel(Dtype::kBF16, 500, 1501));  // blocks cross rows, weights larger than a slot
  models.push_back({{"odd.weight", Dtype::kF32, {7, 63}},
                    {"one.weight", Dtype::kF16, {1, 1}},
                    {"none.weight", Dtype::kF32, {0, 5}},
                    {"mixed.weight", Dtype::kBF16, {333, 129}}});
  models.push_back({{"only.embeddings.weight", Dtype::kF32, {100, 100}}});
  models.push_back({});
  for (const std::vector<TensorSpec>& tensors : models) {
    const std::string model = Model(tensors);
    for (const auto& [slots, threads] : {std::pair(1u, 1u), std::pair(2u, 4u), std::pair(3u, 2u)}) {
      for (const Bytes slot_size : {512_B, Bytes(100'000u), 8_MiB}) {
        LoadOptions options;
        options.slots = slots;
        options.threads = threads;
        options.slot_size = slot_size;
        const absl::StatusOr<LoadPlan> plan = PlanDirectory(model, options);
        ASSERT_TRUE(plan.ok()) << plan.status();
        const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
        ASSERT_TRUE(result.ok()) << result.status();
        SCOPED_TRACE(model + ", " + std::to_string(slots) + " slots of " + ToString(plan->slot_size));
        ExpectAllHolds(*result);
        ExpectRightBytes(*plan, result->model);
        EXPECT_EQ(result->final_bytes, plan->final_bytes);
        EXPECT_EQ(result->source_bytes, plan->source_bytes());
        EXPECT_EQ(result->residuals.size(), plan->quantized_count());
        EXPECT_EQ(result->audit.size(), plan->weights.size());
      }
    }
  }
  EXPECT_EQ(upstream_.memory_info().free, upstream_.memory_info().total) << "all models are gone";
}

TEST_F(LoadTest, HoldsTheBytesOfEveryFormat) {
  const std::vector<TensorSpec> tensors = {{"tall.weight", Dtype::kBF16, {1501, 500}}, {"odd.weight", Dtype::kF32, {7, 63}},
                                           {"one.weight", Dtype::kF16, {1, 1}},        {"wide.weight", Dtype::kF16, {3, 9000}},
                                           {"same.weight", Dtype::kBF16, {1501, 500}}, {"norm.weight", Dtype::kF32, {500}}};
  const std::string model = Model(tensors);
  for (const QuantType type : {QuantType::kNf4, QuantType::kFp4}) {
    for (const uint32_t block : {32u, 64u, 256u, 4096u}) {
      for (const bool double_quant : {false, true}) {
        for (const uint64_t threads : {1u, 3u}) {
          LoadOptions options;
          options.format = {type, block, double_quant};
          options.threads = threads;
          options.slots = 4;
          options.slot_size = 16_KiB;
          const absl::StatusOr<LoadPlan> plan = PlanDirectory(model, options);
          ASSERT_TRUE(plan.ok()) << plan.status();
          const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
          ASSERT_TRUE(result.ok()) << result.status();
          SCOPED_TRACE(ToString(options.format) + ", " + std::to_string(threads) + " threads");
          ExpectAllHolds(*result);
          ExpectRightBytes(*plan, result->model);
        }
      }
    }
  }
}

TEST_F(LoadTest, HasTheSamePeakOnEachOfAHundredRuns) {
  const std::string model = Model(TinyModel(Dtype::kBF16, 500, 1501));
  for (uint64_t run = 0; run < 100; ++run) {
    LoadOptions options;
    options.format.double_quant = run % 2 == 1;
    options.threads = 1 + run % 8;
    options.slots = 4;
    options.slot_size = 64_KiB;
    const absl::StatusOr<LoadPlan> plan = PlanDirectory(model, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
    ASSERT_TRUE(result.ok()) << result.status();
    SCOPED_TRACE("run " + std::to_string(run));
    ExpectAllHolds(*result);
  }
}

TEST_F(LoadTest, ChargesEachWeightByName) {
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kF32)), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  ASSERT_TRUE(result.ok()) << result.status();
  const Ledger& ledger = result->model.allocator().ledger();
  const LoadedWeight* const query = result->model.Find("encoder.layer.0.attention.self.query.weight");
  ASSERT_NE(query, nullptr);
  EXPECT_EQ(OwnerName(query->owner), "model/encoder.layer.0.attention.self.query.weight");
  EXPECT_EQ(ledger.usage(query->owner, Role::kQuantized).requested, query->layout().size);
  const Lineage lineage = ledger.lineage(query->owner);
  EXPECT_EQ(lineage.state, LineageState::kClosed);
  EXPECT_TRUE(lineage.staging.in_use.is_zero());
  EXPECT_GE(lineage.staging.charged_ever, Bytes(96u * 96 * 4)) << "all of it was staged";
  const LoadedWeight* const norm = result->model.Find("encoder.layer.0.output.LayerNorm.weight");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(ledger.usage(norm->owner, Role::kOther).requested, Bytes(96u * 4));
  EXPECT_EQ(result->model.Find("absent"), nullptr);

  absl::StatusOr<LoadResult> second = Load(*plan, upstream_);
  ASSERT_TRUE(second.ok()) << second.status();
  result->model = std::move(second->model);  // the first model's blocks go back to their own allocator
  EXPECT_NE(result->model.Find("pooler.dense.weight"), nullptr);
}

TEST_F(LoadTest, StopsOneHandleUnderThePrediction) {
  for (const std::vector<TensorSpec>& tensors : {TinyModel(Dtype::kF32), TinyModel(Dtype::kBF16, 1000, 3001)}) {
    absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(tensors), {});
    ASSERT_TRUE(plan.ok()) << plan.status();
    plan->predicted_peak_bytes -=
        2_MiB;  // the load's cap: the plan is told a lie, so that the allocator has to stop it
    const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
    EXPECT_TRUE(absl::IsResourceExhausted(result.status())) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(ToString(plan->predicted_peak_bytes)));
    EXPECT_EQ(upstream_.memory_info().free, upstream_.memory_info().total) << "nothing stays behind";
  }
}

TEST_F(LoadTest, RefusesAPlanThatDoesNotFitBeforeReading) {
  LoadOptions options;
  options.cap = 2_MiB;
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kF32, 1024, 1024)), options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  bool read = false;
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_, [&](Bytes, Bytes) { return read = true; });
  EXPECT_TRUE(absl::IsResourceExhausted(result.status()));
  EXPECT_FALSE(read);
}

TEST_F(LoadTest, ReportsProgressUpToTheLastByte) {
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kF16)), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  Bytes last;
  ASSERT_TRUE(Load(*plan, upstream_, [&](Bytes done, Bytes total) {
                EXPECT_GT(done, last);
                EXPECT_EQ(total, plan->source_bytes());
                last = done;
                return true;
              }).ok());
  EXPECT_EQ(last, plan->source_bytes());
}

TEST_F(LoadTest, ReturnsTheFilesErrorAndLeavesNothingBehind) {
  const std::string model = Model(TinyModel(Dtype::kF32));
  LoadOptions options;
  options.slot_size = 4_KiB;
  options.slots = 3;
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(model, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::filesystem::resize_file(model + "/model.safetensors", 300'000);
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("model.safetensors"));
  EXPECT_EQ(upstream_.memory_info().free, upstream_.memory_info().total);
}

TEST_F(LoadTest, RefusesMemoryThatTheHostCannotReach) {
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kF32)), {});
  FakeUpstream fake;
  EXPECT_EQ(Load(*plan, fake).status().code(), absl::StatusCode::kUnimplemented);
}

struct FaultCase {
  std::string_view name;
  LoadAssertion assertion;
  std::string_view says;
};

class LoadFaultTest : public LoadTest, public ::testing::WithParamInterface<FaultCase> {};

TEST_P(LoadFaultTest, BreaksItsOwnAssertionAloneAndNamesTheWeight) {
  for (const uint64_t slots : {1u, 2u}) {
    LoadOptions options;
    options.slots = slots;
    ASSERT_TRUE(ParseLoadFault(GetParam().name, &options.fault));
    const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kF32)), options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->passed());
    for (const LoadAssertion assertion :
         {LoadAssertion::kResidual, LoadAssertion::kStaging, LoadAssertion::kAudit, LoadAssertion::kOwnerless}) {
      EXPECT_EQ(result->holds(assertion), assertion != GetParam().assertion) << AssertionName(assertion);
    }
    ASSERT_EQ(result->failures.size(), 1u);
    const LoadFailure& failure = result->failures[0];
    EXPECT_EQ(AssertionName(failure.assertion), GetParam().name);
    EXPECT_EQ(failure.weight, "pooler.dense.weight");
    EXPECT_FALSE(failure.bytes.is_zero());
    EXPECT_THAT(failure.message, HasSubstr("pooler.dense.weight"));
    EXPECT_THAT(failure.message, HasSubstr(std::string(GetParam().says)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, LoadFaultTest,
                         ::testing::Values(FaultCase{"residual", LoadAssertion::kResidual, "in role staging"},
                                           FaultCase{"staging", LoadAssertion::kStaging, "over the budget"},
                                           FaultCase{"audit", LoadAssertion::kAudit, "was planned nf4"},
                                           FaultCase{"ownerless", LoadAssertion::kOwnerless, "have no owner"}),
                         [](const auto& fault) { return std::string(fault.param.name); });

TEST_F(LoadTest, PlantsNoFaultWhereNothingIsQuantized) {
  LoadOptions options;
  options.fault = LoadFault::kResidual;
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model({{"embeddings.weight", Dtype::kF32, {10, 10}}}), options);
  EXPECT_TRUE(absl::IsInvalidArgument(Load(*plan, upstream_).status()));
}

TEST_F(LoadTest, WritesACheckpointFromTheLoadedModel) {
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kBF16)), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  ASSERT_TRUE(result.ok()) << result.status();
  const absl::StatusOr<std::vector<CheckpointTensor>> tensors = result->model.CheckpointTensors();
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const auto written = WriteCheckpoint(*plan->source, directory_ / "out", *tensors);
  ASSERT_TRUE(written.ok()) << written.status();
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(directory_ / "out/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  for (const LoadedWeight& weight : result->model.weights()) {
    const TensorInfo* const tensor = file->Find(weight.tensor.name);
    ASSERT_NE(tensor, nullptr) << weight.tensor.name;
    std::vector<std::byte> bytes(tensor->size.count());
    ASSERT_TRUE(file->Read(*tensor, Bytes(), bytes).ok());
    EXPECT_EQ(std::memcmp(bytes.data(), DataOf(weight), bytes.size()), 0) << weight.tensor.name;
  }
}

TEST_F(LoadTest, LoadsWhatItWroteWithoutQuantizingAgain) {
  for (const bool double_quant : {false, true}) {
    LoadOptions options;
    options.format = {QuantType::kFp4, 128, double_quant};
    const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(Dtype::kBF16)), options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const absl::StatusOr<LoadResult> first = Load(*plan, upstream_);
    ASSERT_TRUE(first.ok()) << first.status();
    const std::string out = directory_ / (double_quant ? "double" : "plain");
    ASSERT_TRUE(WriteCheckpoint(*plan->source, out, *first->model.CheckpointTensors()).ok());

    const absl::StatusOr<LoadPlan> again = PlanDirectory(out);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(again->stored_4bit);
    EXPECT_EQ(again->quantized_count(), 0u);
    EXPECT_TRUE(again->staging_budget_bytes.is_zero());
    const absl::StatusOr<LoadResult> second = Load(*again, upstream_);
    ASSERT_TRUE(second.ok()) << second.status();
    ExpectAllHolds(*second);
    ExpectRightBytes(*again, second->model);
    const LoadedWeight* const weight = second->model.Find("pooler.dense.weight");
    ASSERT_NE(weight, nullptr);
    EXPECT_EQ(std::memcmp(DataOf(*weight), DataOf(*first->model.Find("pooler.dense.weight")), weight->block.size().count()), 0);
    const auto planned = std::find_if(again->weights.begin(), again->weights.end(),
                                      [](const PlannedWeight& w) { return w.tensor.name == "pooler.dense.weight"; });
    EXPECT_THAT(planned->format, HasSubstr("fp4, blocks of 128"));
  }
}

TEST_F(LoadTest, ComparesEachWeightWithItsSource) {
  const std::vector<TensorSpec> tensors = {{"even.weight", Dtype::kBF16, {700, 500}}, {"b.weight", Dtype::kF32, {31, 77}}};
  const std::string model = Model(tensors);
  for (const bool double_quant : {false, true}) {
    for (const uint64_t threads : {1u, 3u}) {
      LoadOptions options;
      options.format = {QuantType::kNf4, 64, double_quant};
      options.slots = 3;
      options.threads = threads;
      options.slot_size = 16_KiB;
      options.verify = true;
      const absl::StatusOr<LoadPlan> plan = PlanDirectory(model, options);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
      ASSERT_TRUE(result.ok()) << result.status();
      ExpectAllHolds(*result);
      ASSERT_EQ(result->errors.size(), 2u);
      for (const WeightError& error : result->errors) {
        const LoadedWeight& weight = *result->model.Find(error.name);
        const FourBitLayout layout = weight.layout();
        std::vector<std::byte> source(weight.tensor.size.count());
        ASSERT_TRUE(plan->source->Read(weight.tensor, Bytes(), source).ok());
        std::vector<float> scales(layout.blocks), values(layout.elements);
        const std::byte* const block = DataOf(weight);
        const auto floats = [&](Bytes at) { return reinterpret_cast<const float*>(block + at.count()); };
        if (double_quant) {
          RestoreAbsmax({reinterpret_cast<const uint8_t*>(block) + layout.absmax_at.count(), layout.blocks},
                        {floats(layout.nested_absmax_at), layout.nested_blocks}, *floats(layout.offset_at), scales);
        } else {
          std::copy_n(floats(layout.absmax_at), layout.blocks, scales.begin());
        }
        Dequantize4Bit(layout.format, {reinterpret_cast<const uint8_t*>(block), PackedBytes(layout.elements).count()}, scales,
                       layout.elements, FloatType::kFloat32, values.data());
        double max = 0, sum = 0, square = 0;
        for (uint64_t i = 0; i < layout.elements; ++i) {
          float expected;
          if (weight.tensor.dtype == Dtype::kF32) {
            std::memcpy(&expected, source.data() + 4 * i, 4);
          } else {
            uint16_t bits;
            std::memcpy(&bits, source.data() + 2 * i, 2);
            expected = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
          }
          max = std::max(max, std::abs(double{values[i]} - expected));
          sum += std::abs(double{values[i]} - expected);
          square += double{expected} * expected;
        }
        const auto n = static_cast<double>(layout.elements);
        EXPECT_EQ(error.max, max) << error.name;
        EXPECT_NEAR(error.mean, sum / n, 1e-9) << error.name;
        EXPECT_NEAR(error.rms, std::sqrt(square / n), 1e-9) << error.name;
        EXPECT_FALSE(error.outlier) << error.relative();
      }
    }
  }
}

TEST_F(LoadTest, FlagsWeightsWithOutliersAndWithValuesThatAreNotFinite) {
  const std::string path = directory_ / "outliers";
  WriteFile(path + "/config.json", R"({"model_type": "bert"})");
  auto writer = SafetensorsWriter::Create(path + "/model.safetensors",
                                          {{"spiky.weight", Dtype::kF32, {64, 64}}, {"broken.weight", Dtype::kF32, {64, 64}}}, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  // Beside a 10, all others lie between two values of the table.
  std::vector<float> spiky(4096, 0.45f), broken(4096, 0.5f);
  for (size_t i = 0; i < spiky.size(); i += 64) spiky[i] = 10.0f;
  broken[77] = INFINITY;
  broken[99] = NAN;
  ASSERT_TRUE(writer->Append(std::as_bytes(std::span(spiky))).ok() && writer->Append(std::as_bytes(std::span(broken))).ok());
  ASSERT_TRUE(writer->Finish().ok());
  LoadOptions options;
  options.verify = true;
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(path, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->errors.size(), 2u);
  EXPECT_TRUE(result->errors[0].outlier) << result->errors[0].relative();
  EXPECT_EQ(result->errors[1].not_finite, 2u);
  EXPECT_EQ(result->errors[1].destroyed, 62u) << "the others of the two blocks' 128 values that share a scale with a NaN";
  EXPECT_TRUE(std::isfinite(result->errors[1].mean));
  EXPECT_TRUE(result->errors[1].outlier);
}

}  // namespace
}  // namespace gpuledger
