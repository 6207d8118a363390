// The load: bytes, prediction and measurement, the cap, the four assertions, and each of them failing by name.
#include "gpuledger/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

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

// Each block is what the codec, or the file, has for the whole weight at once.
void ExpectRightBytes(const LoadPlan& plan, const LoadedModel& model) {
  for (const LoadedWeight& weight : model.weights()) {
    const TensorInfo& tensor = weight.tensor;
    std::vector<std::byte> source(tensor.size.count());
    ASSERT_TRUE(plan.file->Read(*plan.file->Find(tensor.name), Bytes(), source).ok());
    if (!weight.quantized) {
      const bool equal = source.empty() || std::memcmp(DataOf(weight), source.data(), source.size()) == 0;
      EXPECT_TRUE(equal) << tensor.name;
      continue;
    }
    const FloatType type = tensor.dtype == Dtype::kF32   ? FloatType::kFloat32
                           : tensor.dtype == Dtype::kF16 ? FloatType::kFloat16
                                                         : FloatType::kBFloat16;
    const Nf4Layout layout = Nf4Layout::Of(tensor.elements);
    std::vector<uint8_t> packed(layout.absmax_at.count());
    std::vector<float> absmax(Nf4Blocks(tensor.elements));
    QuantizeNf4(type, source.data(), tensor.elements, {packed.data(), Nf4PackedBytes(tensor.elements).count()}, absmax);
    EXPECT_EQ(std::memcmp(DataOf(weight), packed.data(), packed.size()), 0) << tensor.name << ": codes and padding";
    EXPECT_EQ(std::memcmp(DataOf(weight) + layout.absmax_at.count(), absmax.data(), 4 * absmax.size()), 0)
        << tensor.name;
    EXPECT_EQ(std::memcmp(DataOf(weight) + layout.table_at.count(), Nf4Table().data(), 64), 0) << tensor.name;
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
    for (const uint64_t slots : {1u, 2u, 3u}) {
      for (const Bytes slot_size : {512_B, Bytes(100'000u), 8_MiB}) {
        LoadOptions options;
        options.slots = slots;
        options.slot_size = slot_size;
        const absl::StatusOr<LoadPlan> plan = PlanLoad(model, options);
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

TEST_F(LoadTest, ChargesEachWeightByName) {
  const absl::StatusOr<LoadPlan> plan = PlanLoad(Model(TinyModel(Dtype::kF32)), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  ASSERT_TRUE(result.ok()) << result.status();
  const Ledger& ledger = result->model.allocator().ledger();
  const LoadedWeight* const query = result->model.Find("encoder.layer.0.attention.self.query.weight");
  ASSERT_NE(query, nullptr);
  EXPECT_EQ(OwnerName(query->owner), "model/encoder.layer.0.attention.self.query.weight");
  EXPECT_EQ(ledger.usage(query->owner, Role::kQuantized).requested, Nf4Layout::Of(96 * 96).size);
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
    absl::StatusOr<LoadPlan> plan = PlanLoad(Model(tensors), {});
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
  const absl::StatusOr<LoadPlan> plan = PlanLoad(Model(TinyModel(Dtype::kF32, 1024, 1024)), options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  bool read = false;
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_, [&](Bytes, Bytes) { read = true; });
  EXPECT_TRUE(absl::IsResourceExhausted(result.status()));
  EXPECT_FALSE(read);
}

TEST_F(LoadTest, ReportsProgressUpToTheLastByte) {
  const absl::StatusOr<LoadPlan> plan = PlanLoad(Model(TinyModel(Dtype::kF16)), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  Bytes last;
  ASSERT_TRUE(Load(*plan, upstream_, [&](Bytes done, Bytes total) {
                EXPECT_GT(done, last);
                EXPECT_EQ(total, plan->source_bytes());
                last = done;
              }).ok());
  EXPECT_EQ(last, plan->source_bytes());
}

TEST_F(LoadTest, ReturnsTheFilesErrorAndLeavesNothingBehind) {
  const std::string model = Model(TinyModel(Dtype::kF32));
  LoadOptions options;
  options.slot_size = 4_KiB;
  options.slots = 3;
  const absl::StatusOr<LoadPlan> plan = PlanLoad(model, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::filesystem::resize_file(model + "/model.safetensors", 300'000);
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("model.safetensors"));
  EXPECT_EQ(upstream_.memory_info().free, upstream_.memory_info().total);
}

TEST_F(LoadTest, RefusesMemoryThatTheHostCannotReach) {
  const absl::StatusOr<LoadPlan> plan = PlanLoad(Model(TinyModel(Dtype::kF32)), {});
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
    const absl::StatusOr<LoadPlan> plan = PlanLoad(Model(TinyModel(Dtype::kF32)), options);
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
  const absl::StatusOr<LoadPlan> plan = PlanLoad(Model({{"embeddings.weight", Dtype::kF32, {10, 10}}}), options);
  EXPECT_TRUE(absl::IsInvalidArgument(Load(*plan, upstream_).status()));
}

TEST_F(LoadTest, WritesACheckpointFromTheLoadedModel) {
  const absl::StatusOr<LoadPlan> plan = PlanLoad(Model(TinyModel(Dtype::kBF16)), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const absl::StatusOr<LoadResult> result = Load(*plan, upstream_);
  ASSERT_TRUE(result.ok()) << result.status();
  const absl::StatusOr<std::vector<CheckpointTensor>> tensors = result->model.CheckpointTensors();
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const auto written = WriteCheckpoint(**OpenModel(plan->directory), directory_ / "out", *tensors);
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
  EXPECT_EQ(PlanLoad(directory_ / "out", {}).status().code(), absl::StatusCode::kInvalidArgument)
      << "quantized already";
}

}  // namespace
}  // namespace gpuledger
