// The plan: which weights become 4-bit, what they will hold, the exact peak, and what it says about bad input.
#include "gpuledger/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "test_checkpoint.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;

class PlanTest : public ::testing::Test {
 protected:
  std::string Model(const std::vector<TensorSpec>& tensors, std::string_view config = R"({"model_type": "bert"})") {
    const std::string path = directory_ / ("model" + std::to_string(models_++));
    WriteModel(path, tensors, config);
    return path;
  }
  static std::string Error(const absl::StatusOr<LoadPlan>& plan) { return std::string(plan.status().message()); }

  TestDirectory directory_;
  int models_ = 0;
};

TEST_F(PlanTest, QuantizesLinearsAndSaysWhyItKeepsTheRest) {
  const std::vector<std::pair<TensorSpec, std::string>> expected = {
      {{"bert.encoder.layer.0.attention.self.query.weight", Dtype::kF32, {64, 64}}, "linear"},
      {{"cls.predictions.transform.dense.weight", Dtype::kF16, {64, 64}}, "linear"},
      {{"model.layers.0.mlp.gate_proj.weight", Dtype::kBF16, {64, 3}}, "linear"},
      {{"model.decoder.project_out.weight", Dtype::kF32, {8, 8}}, "linear"},
      {{"bert.embeddings.word_embeddings.weight", Dtype::kF32, {64, 64}}, "embedding"},
      {{"model.embed_tokens.weight", Dtype::kF32, {64, 64}}, "embedding"},
      {{"transformer.wte.weight", Dtype::kF32, {64, 64}}, "embedding"},
      {{"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", Dtype::kF32, {32, 8}}, "embedding"},
      {{"lm_head.weight", Dtype::kF32, {64, 64}}, "output head, tied to the embedding"},
      {{"cls.predictions.decoder.weight", Dtype::kF32, {64, 64}}, "output head, tied to the embedding"},
      {{"classifier.weight", Dtype::kF32, {2, 64}}, "output head, the last module"},
      {{"model.layers.0.mlp.gate.weight", Dtype::kF32, {8, 64}}, "router"},
      {{"model.layers.0.input_layernorm.weight", Dtype::kF32, {64}}, "norm"},
      {{"encoder.layer.0.output.LayerNorm.bias", Dtype::kF32, {64}}, "bias"},
      {{"conv.weight", Dtype::kF32, {4, 1, 4}}, "convolution"},
      {{"A_log", Dtype::kF32, {32}}, "one-dimensional"},
      {{"experts.down", Dtype::kF32, {32, 32}}, "not a module's weight"},
      {{"position.weight", Dtype::kI64, {4, 4}}, "not a 16- or 32-bit float"},
      {{"nothing.weight", Dtype::kF32, {0, 4}}, "empty"},
  };
  std::vector<TensorSpec> tensors;
  std::map<std::string, std::string> reasons;
  for (const auto& [tensor, reason] : expected) tensors.push_back(tensor), reasons[tensor.name] = reason;

  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(tensors), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->weights.size(), expected.size());
  EXPECT_EQ(plan->quantized_count(), 4u);
  for (size_t i = 0; i < plan->weights.size(); ++i) {
    const PlannedWeight& weight = plan->weights[i];
    EXPECT_EQ(weight.reason, reasons[weight.tensor.name]) << weight.tensor.name;
    EXPECT_EQ(weight.action == WeightAction::kQuantize, weight.reason == "linear") << weight.tensor.name;
    EXPECT_EQ(weight.action == WeightAction::kQuantize, i < 4) << "quantized weights come first";
  }
}

TEST_F(PlanTest, LeavesTransposedLinearsOfGpt2Alone) {
  const std::vector<TensorSpec> tensors = {{"h.0.attn.c_attn.weight", Dtype::kF32, {64, 192}}};
  EXPECT_EQ(PlanDirectory(Model(tensors, R"({"model_type": "gpt2"})"), {})->quantized_count(), 0u);
  EXPECT_EQ(PlanDirectory(Model(tensors, R"({"model_type": "other"})"), {})->quantized_count(), 1u);
}

TEST_F(PlanTest, CountsPackedCodesPaddingScalesAndTable) {
  const std::vector<TensorSpec> tensors = {{"a.weight", Dtype::kF32, {7, 63}}, {"b.weight", Dtype::kF32, {64, 64}}};
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(tensors), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weights[0].final_bytes, Bytes(224u + 4 * 7 + 64)) << "441 elements: 221 B of codes, padded to 224";
  EXPECT_EQ(plan->weights[1].final_bytes, Bytes(2048u + 4 * 64 + 64));
  EXPECT_EQ(plan->final_bytes, plan->weights[0].final_bytes + plan->weights[1].final_bytes);
}

TEST_F(PlanTest, CountsScalesOfScalesWithDoubleQuantization) {
  LoadOptions options;
  options.format = {QuantType::kFp4, 64, true};
  const std::vector<TensorSpec> tensors = {{"a.weight", Dtype::kF32, {7, 63}}, {"b.weight", Dtype::kF32, {512, 512}}};
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(tensors), options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weights[0].final_bytes, Bytes(224u + 7 + 4 + 4 + 64 + 1024)) << "7 scales, one scale of scales";
  EXPECT_EQ(plan->weights[1].final_bytes, Bytes(131072u + 4096 + 4 * 16 + 4 + 64 + 1024));
  EXPECT_EQ(plan->scratch_size, Bytes(4u * 4096)) << "the scales of the largest weight";
  EXPECT_EQ(plan->weights[0].format, "fp4, double-quantized");
}

TEST_F(PlanTest, KeepsWhatTheUserSkips) {
  LoadOptions options;
  options.skip = {"encoder.layer.0.**"};
  const std::string model = Model(TinyModel(Dtype::kF32));
  EXPECT_EQ(PlanDirectory(model)->quantized_count(), 7u);
  EXPECT_EQ(PlanDirectory(model, options)->quantized_count(), 4u);
  options.only = {"**.query.weight", "pooler.*.weight"};
  EXPECT_EQ(PlanDirectory(model, options)->quantized_count(), 2u) << "skip wins over only";
}

TEST_F(PlanTest, PredictsTheInUsePeakByTheEquation) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBF16}) {
    for (const uint64_t slots : {1u, 2u, 5u}) {
      for (const Bytes slot_size : {512_B, 4_KiB, 8_MiB}) {
        LoadOptions options;
        options.format.double_quant = slots == 2;
        options.slots = slots;
        options.slot_size = slot_size;
        const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model(TinyModel(dtype)), options);
        ASSERT_TRUE(plan.ok()) << plan.status();
        Bytes quantized, final_charged;
        for (const PlannedWeight& weight : plan->weights) {
          const Bytes charged = weight.final_bytes.RoundUpTo(SizeClass::kGranule);
          if (weight.action == WeightAction::kQuantize) quantized += charged;
          final_charged += charged;
        }
        EXPECT_EQ(plan->staging_budget_bytes, plan->slot_size * slots);
        const Bytes scratch = plan->scratch_size.RoundUpTo(SizeClass::kGranule);
        EXPECT_EQ(plan->scratch_size.is_zero(), !options.format.double_quant);
        EXPECT_EQ(plan->predicted_in_use_bytes,
                  std::max(quantized + plan->staging_budget_bytes + scratch, final_charged));
        EXPECT_GE(plan->predicted_peak_bytes, plan->predicted_in_use_bytes);
        EXPECT_TRUE((plan->predicted_peak_bytes % 2_MiB).is_zero());
      }
    }
  }
}

TEST_F(PlanTest, MakesSlotsNoLargerThanTheLargestQuantizedWeight) {
  const std::string model = Model(TinyModel(Dtype::kF16, 96, 320));
  EXPECT_EQ(PlanDirectory(model, {})->slot_size, Bytes(2u * 96 * 320));
  LoadOptions options;
  options.slot_size = Bytes(5000u);
  EXPECT_EQ(PlanDirectory(model, options)->slot_size, Bytes(4608u)) << "rounded down to 512 B";
}

TEST_F(PlanTest, PlansAModelWithNothingToQuantize) {
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(Model({{"embeddings.weight", Dtype::kF32, {10, 10}}}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->quantized_count(), 0u);
  EXPECT_TRUE(plan->staging_budget_bytes.is_zero());
  EXPECT_EQ(plan->predicted_peak_bytes, 2_MiB);
  EXPECT_TRUE(PlanDirectory(Model({}), {})->predicted_peak_bytes.is_zero());
}

TEST_F(PlanTest, SaysWhatIsShortAndWhereTheLoadWouldStop) {
  const std::string model = Model(TinyModel(Dtype::kF32, 1024, 1024));
  LoadOptions options;
  const Bytes peak = PlanDirectory(model, options)->predicted_peak_bytes;
  options.cap = peak;
  EXPECT_TRUE(PlanDirectory(model, options)->fits);
  EXPECT_TRUE(CheckFits(*PlanDirectory(model, options)).ok());
  options.cap = peak - 1_B;
  const absl::StatusOr<LoadPlan> plan = PlanDirectory(model, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->fits);
  EXPECT_EQ(plan->predicted_peak_bytes, peak) << "the prediction does not depend on the cap";
  const absl::Status status = CheckFits(*plan);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 B short"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model/")) << "the allocator's report names owners";
  EXPECT_FALSE(PlanDirectory(model, {}, peak - 1_B)->fits) << "nor if the device has less";
}

TEST_F(PlanTest, TurnsBadInputAwayWithASentence) {
  const std::vector<TensorSpec> tensors = TinyModel(Dtype::kF32);
  LoadOptions options;
  options.slots = 0;
  EXPECT_THAT(Error(PlanDirectory(Model(tensors), options)), HasSubstr("at least one slot"));
  options.slots = 1;
  options.slot_size = 511_B;
  EXPECT_THAT(Error(PlanDirectory(Model(tensors), options)), HasSubstr("too small"));
  options = LoadOptions();
  options.format.block = 96;
  EXPECT_THAT(Error(PlanDirectory(Model(tensors), options)), HasSubstr("power of two from 32 to 4096"));
  options = LoadOptions();
  options.only = {"no.such.weight"};
  EXPECT_THAT(Error(PlanDirectory(Model(tensors), options)), HasSubstr("no.such.weight"));
}

}  // namespace
}  // namespace gpuledger
