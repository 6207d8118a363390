// Which weights become 4-bit, and the reason that is shown. tests/quant/test_rules_match_transformers.py holds the
// decisions against transformers; here are the reasons, globs, lists of modules, and bad configurations.
#include "weight_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gpuledger {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TensorInfo Tensor(std::string_view name, std::vector<uint64_t> shape = {64, 64}, Dtype dtype = Dtype::kBF16) {
  uint64_t elements = 1;
  for (const uint64_t dimension : shape) elements *= dimension;
  TensorInfo tensor{std::string(name), dtype, std::move(shape), elements, 0, DtypeSize(dtype) * elements};
  return tensor;
}

std::vector<TensorInfo> Matrices(const std::vector<std::string_view>& names) {
  std::vector<TensorInfo> tensors;
  for (const std::string_view name : names) tensors.push_back(Tensor(name));
  return tensors;
}

// "quantize: linear", one for each tensor; "+" marks an expert.
std::vector<std::string> Decide(const std::string& config, const std::vector<TensorInfo>& tensors,
                                const RuleOptions& options = {}) {
  const absl::StatusOr<WeightRules> rules = WeightRules::For(config, tensors, options);
  if (!rules.ok()) return {std::string(rules.status().message())};
  std::vector<std::string> decisions;
  for (const TensorInfo& tensor : tensors) {
    const WeightRule rule = rules->RuleFor(tensor);
    const std::string expert = rule.expert ? "+" : "";
    decisions.push_back(std::string(ActionName(rule.action)) + expert + ": " + rule.reason);
  }
  return decisions;
}

std::string Error(const std::string& config, const RuleOptions& options = {}) {
  const absl::StatusOr<WeightRules> rules =
      WeightRules::For(config, Matrices({"model.layers.0.mlp.up_proj.weight"}), options);
  EXPECT_TRUE(absl::IsInvalidArgument(rules.status())) << rules.status();
  return std::string(rules.status().message());
}

TEST(WeightRules, SayWhyEachWeightOfALlamaIsQuantizedOrKept) {
  EXPECT_THAT(Decide(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})",
                     {Tensor("model.layers.0.mlp.up_proj.weight"), Tensor("model.embed_tokens.weight"),
                      Tensor("lm_head.weight"), Tensor("model.norm.weight", {64}),
                      Tensor("model.layers.0.self_attn.q_proj.bias", {64}),
                      Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", {32}),
                      Tensor("model.layers.0.mlp.up_proj.codes", {64, 64}, Dtype::kU8),
                      Tensor("model.layers.1.mlp.up_proj.weight", {0, 64})}),
              ElementsAre("quantize: linear", "keep: embedding", "keep: output head", "keep: norm", "keep: bias",
                          "keep: one-dimensional", "keep: not a 16- or 32-bit float", "keep: empty"));
}

TEST(WeightRules, KeepAHeadThatIsTiedToTheEmbedding) {
  const std::vector<TensorInfo> head = Matrices({"lm_head.weight"});
  const auto tied = ElementsAre("keep: output head, tied to the embedding");
  const auto own = ElementsAre("keep: output head");
  EXPECT_THAT(Decide(R"({"model_type": "llama", "tie_word_embeddings": true})", head), tied);
  EXPECT_THAT(Decide(R"({"model_type": "gemma"})", head), tied);
  EXPECT_THAT(Decide(R"({"model_type": "gemma", "tie_word_embeddings": false})", head), own);
  EXPECT_THAT(Decide(R"({"model_type": "qwen3_5_moe", "text_config": {"tie_word_embeddings": true}})", head), tied);
  EXPECT_THAT(Decide(R"({"model_type": "llama"})", head), own);
}

TEST(WeightRules, KeepAClassifierOnlyIfNoBiasFollows) {
  const std::string config = R"({"model_type": "bert", "architectures": ["BertForSequenceClassification"]})";
  EXPECT_THAT(Decide(config, Matrices({"classifier.weight"})), ElementsAre("keep: output head, the last module"));
  EXPECT_THAT(Decide(config, {Tensor("classifier.weight"), Tensor("classifier.bias", {64})}),
              ElementsAre("quantize: linear", "keep: bias"));
}

TEST(WeightRules, QuantizeExpertsFusedOrNotAndKeepRouters) {
  EXPECT_THAT(
      Decide(R"({"model_type": "qwen3_5_moe"})",
             {Tensor("model.language_model.layers.0.mlp.experts.gate_up_proj", {8, 32, 64}),
              Tensor("model.language_model.layers.0.mlp.experts.down_proj", {8, 64, 16}),
              Tensor("model.language_model.layers.0.mlp.experts.gate_up_proj_bias", {8, 32}),
              Tensor("model.language_model.layers.0.mlp.gate.weight", {8, 64}),
              Tensor("model.language_model.layers.0.mlp.shared_expert_gate.weight", {1, 64}),
              Tensor("model.language_model.layers.0.mlp.shared_expert.up_proj.weight"),
              Tensor("model.language_model.layers.0.linear_attn.conv1d.weight", {64, 1, 4}),
              Tensor("model.visual.patch_embed.proj.weight", {32, 3, 2, 4, 4})}),
      ElementsAre("quantize+: experts, fused", "quantize+: experts, fused", "keep: not a module's weight",
                  "keep: router", "quantize: linear", "quantize: linear", "keep: convolution", "keep: convolution"));
  EXPECT_THAT(Decide(R"({"model_type": "mixtral"})", Matrices({"model.layers.0.block_sparse_moe.experts.7.w2.weight",
                                                               "model.layers.0.block_sparse_moe.gate.weight"})),
              ElementsAre("quantize+: expert", "keep: router"));
}

TEST(WeightRules, KeepWhatTheClassDoesNotLoad) {
  EXPECT_THAT(Decide(R"({"model_type": "bert", "architectures": ["BertForMaskedLM"]})",
                     Matrices({"bert.pooler.dense.weight", "cls.seq_relationship.weight",
                               "cls.predictions.transform.dense.weight", "cls.predictions.decoder.weight"})),
              ElementsAre("keep: not loaded by BertForMaskedLM", "keep: not loaded by BertForMaskedLM",
                          "quantize: linear", "keep: output head, tied to the embedding"));
  EXPECT_THAT(Decide(R"({"model_type": "bert", "architectures": ["BertModel"]})",
                     Matrices({"bert.pooler.dense.weight", "cls.predictions.transform.dense.weight"})),
              ElementsAre("quantize: linear", "keep: not loaded by BertModel"));
  EXPECT_THAT(Decide("{}", Matrices({"mtp.layers.0.mlp.up_proj.weight"})),
              ElementsAre("keep: not loaded by transformers"));
}

TEST(WeightRules, KeepConv1DAndWhatMultiheadAttentionOwns) {
  EXPECT_THAT(Decide(R"({"model_type": "gpt2"})", Matrices({"transformer.h.0.attn.c_attn.weight"})),
              ElementsAre("keep: Conv1D, stored transposed"));
  EXPECT_THAT(Decide("{}", Matrices({"head.attention.in_proj_weight", "head.attention.out_proj.weight",
                                     "layers.0.self_attn.out_proj.weight"})),
              ElementsAre("keep: not a module's weight", "keep: inside nn.MultiheadAttention",
                          "quantize: linear (by its name)"));
  EXPECT_THAT(Decide(R"({"model_type": "t5"})", Matrices({"encoder.block.0.layer.1.DenseReluDense.wo.weight"})),
              ElementsAre("keep: kept in 32 bit by transformers"));
}

TEST(WeightRules, SayThatTheNameDecidedWhereTheFamilyIsUnknown) {
  EXPECT_THAT(Decide(R"({"model_type": "nobody-knows"})",
                     Matrices({"a.proj.weight", "experts.0.w.weight", "tok_embeddings.weight",
                               "embedding_hidden_mapping_in.weight", "moe.router.weight", "output.weight"})),
              ElementsAre("quantize: linear (by its name)", "quantize+: expert (by its name)", "keep: embedding",
                          "quantize: linear (by its name)", "keep: router", "keep: output head"));
}

TEST(WeightRules, KeepWhatSkipMatchesAndWhatOnlyDoesNot) {
  const std::vector<TensorInfo> tensors =
      Matrices({"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
                "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"});
  const std::string config = R"({"model_type": "llama"})";
  EXPECT_THAT(Decide(config, tensors, {{"**.up_proj.weight"}, {}}),
              ElementsAre("keep: skipped by --skip **.up_proj.weight", "quantize: linear",
                          "keep: skipped by --skip **.up_proj.weight", "keep: embedding"));
  EXPECT_THAT(Decide(config, tensors, {{}, {"model.layers.0.*.*.weight"}}),
              ElementsAre("quantize: linear", "quantize: linear", "keep: not in --only", "keep: embedding"));
  EXPECT_THAT(Decide(config, tensors, {{"**.up_proj.*"}, {"model.layers.0.**"}}),
              ElementsAre("keep: skipped by --skip **.up_proj.*", "quantize: linear",
                          "keep: skipped by --skip **.up_proj.*", "keep: embedding"));
  EXPECT_THAT(Decide(config, Matrices({"a.experts.0.w.weight"}), {{"**.experts.**"}, {}}),
              ElementsAre("keep: skipped by --skip **.experts.**"));
}

TEST(WeightRules, NameAGlobThatMatchesNoTensor) {
  EXPECT_THAT(Error("{}", {{"*.up_proj.weight"}, {}}), HasSubstr("--skip *.up_proj.weight: matches no tensor"));
  EXPECT_THAT(Error("{}", {{}, {"**", "typo"}}), HasSubstr("--only typo: matches no tensor"));
}

TEST(WeightRules, TakeAListOfModulesInsteadOfTheDefault) {
  const std::vector<TensorInfo> tensors =
      Matrices({"model.layers.1.mlp.up_proj.weight", "model.layers.10.mlp.up_proj.weight",
                "model.layers.2.self_attn.o_proj.weight", "lm_head.weight"});
  const auto decide = [&](const std::string& list) {
    return Decide(R"({"model_type": "llama", "llm_int8_skip_modules": )" + list + "}", tensors);
  };
  const std::string listed = "keep: in the model's list of modules not to convert";
  const std::string linear = "quantize: linear";
  const std::string head = "quantize: output head, not in the list";
  EXPECT_THAT(decide("[]"), ElementsAre(linear, linear, linear, head));
  EXPECT_THAT(decide(R"(["lm_head", "o_proj"])"), ElementsAre(linear, linear, listed, listed));
  EXPECT_THAT(decide(R"(["model.layers.1"])"), ElementsAre(listed, listed, linear, head)) << "it is a beginning";
  EXPECT_THAT(decide(R"(["^model.layers.1.mlp.up_proj$"])"), ElementsAre(listed, linear, linear, head));
  EXPECT_THAT(decide(R"(["model\\.layers\\.[0-9]\\..*proj"])"), ElementsAre(listed, linear, listed, head));
  EXPECT_THAT(
      Decide(R"({"model_type": "llama", "quantization_config": {"llm_int8_skip_modules": ["o_proj"]}})", tensors),
      ElementsAre(linear, linear, listed, head));
  EXPECT_THAT(decide("null"), ElementsAre(linear, linear, linear, "keep: output head"));
}

TEST(WeightRules, MatchAListByTheNamesOfTheClassThatLoads) {
  const std::string list = R"("llm_int8_skip_modules": ["model.decoder.layers.0"]})";
  EXPECT_THAT(Decide(R"({"model_type": "opt", "architectures": ["OPTForCausalLM"], )" + list,
                     Matrices({"decoder.layers.0.fc1.weight", "decoder.layers.1.fc1.weight"})),
              ElementsAre("keep: in the model's list of modules not to convert", "quantize: linear"));
}

TEST(WeightRules, TurnAwayAConfigurationThatIsNone) {
  EXPECT_THAT(Error(""), HasSubstr("config.json: not a JSON object"));
  EXPECT_THAT(Error("[1]"), HasSubstr("config.json: not a JSON object"));
  EXPECT_THAT(Error(R"({"llm_int8_skip_modules": "lm_head"})"), HasSubstr("not a list of names"));
  EXPECT_THAT(Error(R"({"llm_int8_skip_modules": ["a", 1]})"), HasSubstr("not a list of names"));
  EXPECT_THAT(Error(R"({"llm_int8_skip_modules": ["mlp.(gate"]})"),
              HasSubstr(R"("mlp.(gate" is no regular expression)"));
  EXPECT_THAT(Error(R"({"llm_int8_skip_modules": ["(a)\\1"]})"),
              HasSubstr("is no regular expression that can be used"));
  EXPECT_THAT(Error(R"({"llm_int8_skip_modules": ["((a{999}){999}){999}"]})"), HasSubstr("counts repetitions"));
  EXPECT_THAT(Error(R"({"llm_int8_skip_modules": [")" + std::string(300, '(') + R"("]})"), HasSubstr("too long"));
}

TEST(WeightRules, TakeEntriesOfTheWrongKindAsNotSaid) {
  EXPECT_THAT(Decide(R"({"model_type": 7, "architectures": "LlamaModel", "tie_word_embeddings": "yes", "text_config": 1,
                         "quantization_config": [], "llm_int8_skip_modules": null})",
                     Matrices({"a.proj.weight", "lm_head.weight"})),
              ElementsAre("quantize: linear (by its name)", "keep: output head"));
  EXPECT_THAT(Decide(R"({"architectures": [null]})", Matrices({"a.proj.weight"})),
              ElementsAre("quantize: linear (by its name)"));
}

TEST(WeightRules, EndInTimeWhateverTheListAndTheNames) {
  // An expression on which a matcher that backtracks never ends, and one name of a megabyte.
  const std::string config = R"({"llm_int8_skip_modules": ["(a*)*b", "(a|a)*c", "x"]})";
  const std::vector<TensorInfo> tensors = {Tensor(std::string(60, 'a') + ".weight"),
                                           Tensor(std::string(1u << 20, 'a') + ".weight")};
  EXPECT_THAT(Decide(config, tensors), ElementsAre("quantize: linear (by its name)", "quantize: linear (by its name)"));
}

}  // namespace
}  // namespace gpuledger
