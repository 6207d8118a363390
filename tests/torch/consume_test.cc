#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/torch.h"

namespace gpuledger::pytorch {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr std::string_view kWeight = "layers.3.up_proj.weight";

class TorchConsumeTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(InstallCpuAllocator().ok()); }
  void TearDown() override { UninstallCpuAllocator(); }

  static at::Tensor Source() {
    const OwnerScope scope(kWeight, Role::kSource);
    return at::ones({8, 4});
  }
  static Bytes Charged() { return CpuAllocator()->ledger().usage(InternOwner(kWeight), Role::kSource).in_use; }
};

TEST_F(TorchConsumeTest, FreesWhatNobodyElseHolds) {
  for (const ConsumePolicy policy : {ConsumePolicy::kRefuse, ConsumePolicy::kPoison, ConsumePolicy::kReport}) {
    at::Tensor source = Source();
    const auto report = Consume(source, kWeight, policy);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->freed);
    EXPECT_EQ(report->bytes, Bytes(128u));
    EXPECT_EQ(report->charged, Bytes(512u));
    EXPECT_EQ(report->remaining, Bytes());
    EXPECT_EQ(OwnerName(report->payer.owner), kWeight);
    EXPECT_EQ(report->holders.total(), 0u);
    EXPECT_FALSE(source.defined());
    EXPECT_EQ(Charged(), Bytes());
  }
}

// Each way to share, with what it adds to the counts.
struct Sharing {
  const char* name;
  std::function<std::vector<at::Tensor>(const at::Tensor&)> share;
  uint64_t tensor_handles;
  uint64_t aliases;
};
void PrintTo(const Sharing& sharing, std::ostream* out) { *out << sharing.name; }

class TorchSharingTest : public TorchConsumeTest, public testing::WithParamInterface<Sharing> {};

TEST_P(TorchSharingTest, IsCountedByKind) {
  at::Tensor source = Source();
  const std::vector<at::Tensor> others = GetParam().share(source);
  const HolderCounts counts = CountHolders(source);
  EXPECT_EQ(counts.tensor_handles, GetParam().tensor_handles);
  EXPECT_EQ(counts.aliases, GetParam().aliases);
  EXPECT_EQ(counts.python_references + counts.python_storages, 0u);
}

TEST_P(TorchSharingTest, IsRefusedWithCountOwnerAndHolders) {
  at::Tensor source = Source();
  const std::vector<at::Tensor> others = GetParam().share(source);
  const auto report = Consume(source, kWeight, ConsumePolicy::kRefuse);
  ASSERT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(report.status().message());
  const uint64_t count = GetParam().tensor_handles + GetParam().aliases;
  EXPECT_THAT(message,
              HasSubstr("weight 'layers.3.up_proj.weight' (128 B, paid by 'layers.3.up_proj.weight' as source)"));
  EXPECT_THAT(message, HasSubstr(std::to_string(count) + " more reference"));
  EXPECT_TRUE(source.defined());
  EXPECT_EQ(source.sum().item<float>(), 32.0f);
  EXPECT_EQ(Charged(), Bytes(512u));
}

TEST_P(TorchSharingTest, IsPoisoned) {
  at::Tensor source = Source();
  const std::vector<at::Tensor> others = GetParam().share(source);
  const auto report = Consume(source, kWeight, ConsumePolicy::kPoison);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->freed);
  EXPECT_EQ(report->holders.total(), GetParam().tensor_handles + GetParam().aliases);
  EXPECT_EQ(report->remaining, Bytes());
  EXPECT_EQ(Charged(), Bytes());
  EXPECT_FALSE(source.defined());
}

TEST_P(TorchSharingTest, IsReportedAndLeft) {
  at::Tensor source = Source();
  const std::vector<at::Tensor> others = GetParam().share(source);
  const auto report = Consume(source, kWeight, ConsumePolicy::kReport);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->freed);
  EXPECT_EQ(report->holders.total(), GetParam().tensor_handles + GetParam().aliases);
  EXPECT_EQ(report->remaining, Bytes(512u));
  EXPECT_TRUE(source.defined());
  EXPECT_EQ(source.sum().item<float>(), 32.0f);
}

const Sharing kKinds[] = {
    {"copy", [](const at::Tensor& t) { return std::vector{t}; }, 1, 0},
    {"list", [](const at::Tensor& t) { return std::vector{t, t, t}; }, 3, 0},
    {"detach", [](const at::Tensor& t) { return std::vector{t.detach()}; }, 0, 1},
    {"view", [](const at::Tensor& t) { return std::vector{t.view({4, 8})}; }, 1, 1},
    {"slice", [](const at::Tensor& t) { return std::vector{t.narrow(0, 2, 3)}; }, 1, 1},
    {"transpose", [](const at::Tensor& t) { return std::vector{t.t()}; }, 1, 1},
    {"data", [](const at::Tensor& t) { return std::vector{t.variable_data()}; }, 0, 1},
    {"saved_input",
     [](const at::Tensor& t) {
       return std::vector{at::ones({8, 4}).requires_grad_().mul(t)};
     },
     1, 0},
    {"bug", [](const at::Tensor& t) { return std::vector{t, t, t.detach()}; }, 2, 1},
};
template <class Case>
std::string NameOf(const testing::TestParamInfo<Case>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Kinds, TorchSharingTest, testing::ValuesIn(kKinds), NameOf<Sharing>);

TEST_F(TorchConsumeTest, SeesAnOutputThatAutogradSaved) {
  at::Tensor output = at::zeros({8, 4}).requires_grad_().exp();
  EXPECT_EQ(CountHolders(output).aliases, 1u);
  EXPECT_EQ(Consume(output, kWeight, ConsumePolicy::kRefuse).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TorchConsumeTest, BackwardThroughAPoisonedTensorRaises) {
  at::Tensor source = Source();
  at::Tensor loss = at::ones({8, 4}).requires_grad_().mul(source).sum();
  ASSERT_TRUE(Consume(source, kWeight, ConsumePolicy::kPoison).ok());
  try {
    loss.backward();
    ADD_FAILURE() << "read freed bytes";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(), HasSubstr(kWeight));
  }
}

TEST_F(TorchConsumeTest, SeesAStorageHandle) {
  at::Tensor source = Source();
  const at::Storage storage = source.storage();
  EXPECT_EQ(CountHolders(source).aliases, 1u);
}

// Each way of reading, one by one.
struct Reading {
  const char* name;
  std::function<void(at::Tensor&)> read;
};
void PrintTo(const Reading& reading, std::ostream* out) { *out << reading.name; }

class TorchPoisonedReadTest : public TorchConsumeTest, public testing::WithParamInterface<Reading> {};

TEST_P(TorchPoisonedReadTest, RaisesTheWeightsName) {
  at::Tensor source = Source();
  at::Tensor alias = source.detach();
  at::Tensor view = alias.view({4, 8});
  ASSERT_TRUE(Consume(source, kWeight, ConsumePolicy::kPoison).ok());
  for (at::Tensor* tensor : {&alias, &view}) {
    try {
      GetParam().read(*tensor);
      ADD_FAILURE() << "no error";
    } catch (const c10::Error& error) {
      EXPECT_THAT(error.what_without_backtrace(), HasSubstr("weight 'layers.3.up_proj.weight' was consumed"));
    }
  }
}

const Reading kReadings[] = {
    {"index_by_tensor", [](at::Tensor& t) { t.index({at::arange(2)}); }},
    {"index_by_mask", [](at::Tensor& t) { t.index({at::ones({t.size(0)}, at::kBool)}); }},
    {"index_put", [](at::Tensor& t) { t.index_put_({at::arange(2)}, at::ones({})); }},
    {"print", [](at::Tensor& t) { std::ostringstream() << t; }},
    {"clone", [](at::Tensor& t) { t.clone(); }},
    {"copy_from", [](at::Tensor& t) { at::empty_like(t).copy_(t); }},
    {"copy_into", [](at::Tensor& t) { t.copy_(at::ones_like(t, at::kDouble)); }},
    {"convert", [](at::Tensor& t) { t.to(at::kHalf); }},
    {"contiguous", [](at::Tensor& t) { t.t().contiguous(); }},
    {"add", [](at::Tensor& t) { t.add(1); }},
    {"add_in_place", [](at::Tensor& t) { t.add_(1); }},
    {"add_out", [](at::Tensor& t) { at::add_out(t, at::ones(t.sizes()), 1); }},
    {"matmul", [](at::Tensor& t) { t.matmul(at::ones({t.size(1), 2})); }},
    {"sum", [](at::Tensor& t) { t.sum(); }},
    {"equal", [](at::Tensor& t) { t.equal(at::ones(t.sizes())); }},
    {"fill", [](at::Tensor& t) { t.fill_(0); }},
    {"zero", [](at::Tensor& t) { t.zero_(); }},
    {"item", [](at::Tensor& t) { t[0][0].item(); }},
    {"typed_item", [](at::Tensor& t) { t[0][0].item<float>(); }},
    {"data_ptr", [](at::Tensor& t) { t.data_ptr(); }},
    {"typed_data_ptr", [](at::Tensor& t) { t.data_ptr<float>(); }},
    {"const_data_ptr", [](at::Tensor& t) { (void)t.const_data_ptr(); }},
    {"mutable_data_ptr", [](at::Tensor& t) { (void)t.mutable_data_ptr(); }},
    {"accessor", [](at::Tensor& t) { (void)t.accessor<float, 2>(); }},
    {"storage_data", [](at::Tensor& t) { (void)t.storage().data(); }},
    {"basic_index_then_read", [](at::Tensor& t) { t.narrow(0, 1, 1).sum(); }},
    {"resize", [](at::Tensor& t) { t.resize_({1000}); }},
};
INSTANTIATE_TEST_SUITE_P(Ways, TorchPoisonedReadTest, testing::ValuesIn(kReadings), NameOf<Reading>);

TEST_F(TorchConsumeTest, ABasicIndexOfAPoisonedTensorIsOnlyAnotherView) {
  at::Tensor source = Source();
  at::Tensor alias = source.detach();
  ASSERT_TRUE(Consume(source, kWeight, ConsumePolicy::kPoison).ok());
  EXPECT_EQ(alias[0].size(0), 4);
  EXPECT_EQ(alias.view({32}).numel(), 32);
  EXPECT_EQ(alias.nbytes(), 128u);
}

TEST_F(TorchConsumeTest, ReadsBeforeItFrees) {
  at::Tensor source = Source();
  float sum = 0;
  const auto report = Consume(source, kWeight, ConsumePolicy::kRefuse, [&sum](const at::Tensor& tensor) {
    sum = tensor.sum().item<float>();
    return absl::OkStatus();
  });
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(sum, 32.0f);
  EXPECT_EQ(Charged(), Bytes());
}

TEST_F(TorchConsumeTest, DoesNotReadWhatItRefuses) {
  at::Tensor source = Source();
  const at::Tensor other = source;
  bool read = false;
  const auto report = Consume(source, kWeight, ConsumePolicy::kRefuse, [&read](const at::Tensor&) {
    read = true;
    return absl::OkStatus();
  });
  EXPECT_FALSE(report.ok());
  EXPECT_FALSE(read);
}

TEST_F(TorchConsumeTest, SeesAHolderThatReadingMade) {
  at::Tensor source = Source();
  at::Tensor kept;
  const auto report = Consume(source, kWeight, ConsumePolicy::kRefuse, [&kept](const at::Tensor& tensor) {
    kept = tensor;
    return absl::OkStatus();
  });
  EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(kept.sum().item<float>(), 32.0f);
}

TEST_F(TorchConsumeTest, ReturnsTheErrorOfReadingAndFreesNothing) {
  at::Tensor source = Source();
  const auto report = Consume(source, kWeight, ConsumePolicy::kPoison,
                              [](const at::Tensor&) { return absl::DataLossError("odd bytes"); });
  EXPECT_EQ(report.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(source.sum().item<float>(), 32.0f);
}

void ExpectNotOurs(at::Tensor tensor, std::string_view why) {
  for (const ConsumePolicy policy : {ConsumePolicy::kRefuse, ConsumePolicy::kPoison}) {
    const auto refused = Consume(tensor, kWeight, policy);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(kWeight));
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(why));
  }
  const auto report = Consume(tensor, kWeight, ConsumePolicy::kReport);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->freed);
  EXPECT_THAT(report->obstacle, HasSubstr(why));
  EXPECT_NO_THROW(tensor.sum());
}

TEST_F(TorchConsumeTest, RefusesABlob) {
  std::vector<float> values(16, 1.0f);
  ExpectNotOurs(at::from_blob(values.data(), {16}), "blob");
  ExpectNotOurs(at::from_blob(values.data(), {16}, [](void*) {}), "blob");
}

TEST_F(TorchConsumeTest, RefusesAMappedFile) {
  const std::string path = testing::TempDir() + "gpuledger_mapped";
  std::FILE* const file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fputs("0123456789abcdef", file);
  std::fclose(file);
  ExpectNotOurs(at::from_file(path, false, 4, at::kFloat), "mapped file");
  std::remove(path.c_str());
}

TEST_F(TorchConsumeTest, RefusesWhatIsMarkedNotResizable) {
  const at::Tensor exported = Source();
  exported.storage().unsafeGetStorageImpl()->set_resizable(false);
  ExpectNotOurs(exported, "exported");
}

TEST_F(TorchConsumeTest, RefusesACopyOnWriteSibling) {
  const at::Tensor source = Source();
  const at::Tensor sibling = at::_lazy_clone(source);
  at::Tensor handle = source;
  EXPECT_EQ(Consume(handle, kWeight, ConsumePolicy::kPoison).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(sibling.sum().item<float>(), 32.0f);
}

TEST_F(TorchConsumeTest, TurnsAwayWhatHasNoBytes) {
  at::Tensor undefined;
  at::Tensor meta = at::empty({3}, at::TensorOptions().device(at::kMeta));
  at::Tensor sparse = at::ones({2, 2}).to_sparse();
  for (at::Tensor* tensor : {&undefined, &meta, &sparse}) {
    EXPECT_EQ(Consume(*tensor, kWeight, ConsumePolicy::kPoison).status().code(), absl::StatusCode::kInvalidArgument);
  }
  at::Tensor source = Source();
  at::Tensor alias = source.detach();
  ASSERT_TRUE(Consume(source, kWeight, ConsumePolicy::kPoison).ok());
  EXPECT_EQ(Consume(alias, kWeight, ConsumePolicy::kPoison).status().code(), absl::StatusCode::kInvalidArgument);
  at::Tensor empty = at::empty({0});
  EXPECT_TRUE(Consume(empty, kWeight, ConsumePolicy::kRefuse).ok());
}

TEST_F(TorchConsumeTest, ConsumesATensorFromBeforeTheInstall) {
  UninstallCpuAllocator();
  at::Tensor source = at::ones({100});
  ASSERT_TRUE(InstallCpuAllocator().ok());
  const auto report = Consume(source, kWeight, ConsumePolicy::kRefuse);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->freed);
  EXPECT_EQ(report->charged, Bytes());
}

TEST_F(TorchConsumeTest, AWatchHoldsNothingAlive) {
  at::Tensor source = Source();
  const OwnerId owner = InternOwner("watched");
  WatchSource(source, owner);
  ASSERT_EQ(Holders(owner).size(), 1u);
  EXPECT_EQ(Holders(owner)[0].holders.tensor_handles, 1u);
  EXPECT_EQ(CountHolders(source).total(), 0u);
  const at::Tensor alias = source.detach();
  source.reset();
  ASSERT_EQ(Holders(owner).size(), 1u);
  EXPECT_EQ(Holders(owner)[0].holders.tensor_handles, 0u);
  EXPECT_EQ(Holders(owner)[0].holders.aliases, 1u);
  at::Tensor last = alias;
  const_cast<at::Tensor&>(alias).reset();
  last.reset();
  EXPECT_TRUE(Holders(owner).empty());
  EXPECT_EQ(Charged(), Bytes());
}

TEST_F(TorchConsumeTest, TheReportNamesEachWeightAndItsHolders) {
  Ledger& ledger = CpuAllocator()->ledger();
  EXPECT_THAT(ResidualReport({}), HasSubstr("No weight left"));
  std::vector<at::Tensor> leaked;
  for (const int i : {0, 1, 2}) {
    const std::string name = "leaked." + std::to_string(i);
    const OwnerScope scope(name, Role::kSource);
    ledger.OpenLineage(InternOwner(name));
    leaked.push_back(at::ones({256 * (i + 1)}));
    WatchSource(leaked.back(), InternOwner(name));
    ledger.CloseLineage(InternOwner(name));
  }
  const at::Tensor alias = leaked[2].detach();
  const std::string report = ResidualReport({.weights = 2});
  EXPECT_THAT(report, HasSubstr("3 weights are quantized, but their source is still resident: 6,144 B"));
  EXPECT_THAT(report, HasSubstr("leaked.2            3,072 B   2 holders\n"
                                "      1 handle of the same tensor, 1 other tensor on its storage"));
  EXPECT_THAT(report, HasSubstr("... and 1 more weight with 1,024 B"));
  EXPECT_THAT(report, Not(HasSubstr("leaked.0")));
  EXPECT_THAT(report, HasSubstr("total: 3 weights, 6,144 B, 4 holders"));
  EXPECT_THAT(report, Not(HasSubstr("\x1b")));
  EXPECT_THAT(ResidualReport({.collapse = true}), HasSubstr("leaked.2 "));  // not alike: its bytes are its own
  EXPECT_THAT(ResidualReport({.colour = true}), HasSubstr("\x1b["));
}

}  // namespace
}  // namespace gpuledger::pytorch
