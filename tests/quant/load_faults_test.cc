// A load that is stopped at each of its steps in turn: by a read, by the upstream, by the user. Nothing stays behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "gpuledger/forwarding_upstream.h"
#include "gpuledger/host_upstream.h"
#include "gpuledger/load.h"
#include "test_checkpoint.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;

struct HostMemory {
  HostAnonymousUpstream host;
};

// Host memory whose calls fail from the nth on: a single failure the allocator would get over.
class FaultyUpstream final : private HostMemory, public ForwardingUpstream {
 public:
  FaultyUpstream() : ForwardingUpstream(host) {}
  void FailFrom(uint64_t nth) { first_ = nth, calls_ = 0; }
  bool Failed() const { return calls_ >= first_; }

  std::string_view name() const override { return "faulty"; }
  absl::StatusOr<Range> Reserve(Bytes size) override {
    if (Fails()) return Fault();
    return inner.Reserve(size);
  }
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override {
    if (Fails()) return Fault();
    return inner.CreateHandle(size);
  }
  absl::Status Map(DevicePtr address, HandleId handle) override {
    if (Fails()) return Fault();
    return inner.Map(address, handle);
  }

 private:
  static absl::Status Fault() { return absl::ResourceExhaustedError("the injected fault"); }
  bool Fails() { return ++calls_ >= first_; }

  uint64_t first_ = UINT64_MAX, calls_ = 0;
};

// A model whose nth read fails.
class FaultySource final : public ModelSource {
 public:
  explicit FaultySource(std::shared_ptr<const ModelSource> inner) : inner_(std::move(inner)) {}
  void FailRead(uint64_t nth) const { left_ = static_cast<int64_t>(nth); }
  bool Failed() const { return left_ <= 0; }

  const std::string& name() const override { return inner_->name(); }
  const std::string& directory() const override { return inner_->directory(); }
  const std::string& config() const override { return inner_->config(); }
  const std::vector<TensorInfo>& tensors() const override { return inner_->tensors(); }
  absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const override {
    if (left_.fetch_sub(1) == 1) return absl::InvalidArgumentError("the injected fault in " + tensor.name);
    return inner_->Read(tensor, offset, out);
  }

 private:
  std::shared_ptr<const ModelSource> inner_;
  mutable std::atomic<int64_t> left_ = INT64_MAX;
};

class LoadFaultsTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    WriteModel(directory_ / "model", TinyModel(Dtype::kBF16));
    absl::StatusOr<std::shared_ptr<const ModelSource>> opened = OpenModel(directory_ / "model");
    ASSERT_TRUE(opened.ok()) << opened.status();
    source_ = std::make_shared<FaultySource>(*opened);
    LoadOptions options;
    options.format.double_quant = GetParam();
    options.slots = 3;
    options.threads = 3;
    options.slot_size = 8_KiB;
    absl::StatusOr<LoadPlan> plan = PlanLoad(source_, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    plan_ = *std::move(plan);
  }
  void ExpectNothingLeft(const Upstream& upstream) {
    EXPECT_EQ(upstream.memory_info().free, upstream.memory_info().total);
  }

  TestDirectory directory_;
  std::shared_ptr<const FaultySource> source_;
  LoadPlan plan_;
};

TEST_P(LoadFaultsTest, ReturnsTheErrorOfAnyReadAndAllMemory) {
  HostAnonymousUpstream upstream;
  uint64_t nth = 1;
  for (;; ++nth) {
    source_->FailRead(nth);
    const absl::StatusOr<LoadResult> result = Load(plan_, upstream);
    if (!source_->Failed()) {
      EXPECT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(result->passed() && result->as_predicted());
      break;
    }
    ASSERT_FALSE(result.ok()) << "read " << nth;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("the injected fault in ")) << "read " << nth;
    ExpectNothingLeft(upstream);
  }
  EXPECT_GT(nth, 40u) << "one read for each part";
}

TEST_P(LoadFaultsTest, ReturnsTheErrorOfAnyUpstreamCallAndAllMemory) {
  FaultyUpstream upstream;
  uint64_t refused = 0;
  for (uint64_t nth = 1;; ++nth) {
    upstream.FailFrom(nth);
    {
      const absl::StatusOr<LoadResult> result = Load(plan_, upstream);
      if (!upstream.Failed()) break;
      // Of some the allocator has another way out; the load is whole then.
      EXPECT_TRUE(!result.ok() || (result->passed() && result->as_predicted())) << "call " << nth;
      refused += result.ok() ? 0 : 1;
    }
    ExpectNothingLeft(upstream);
  }
  EXPECT_GT(refused, 0u);
}

TEST_P(LoadFaultsTest, StopsWhenToldToAtAnyPointAndReturnsAllMemory) {
  HostAnonymousUpstream upstream;
  for (uint64_t nth = 1;; ++nth) {
    uint64_t calls = 0;
    const absl::StatusOr<LoadResult> result = Load(plan_, upstream, [&](Bytes, Bytes) { return ++calls < nth; });
    if (result.ok()) {
      EXPECT_EQ(calls, nth - 1);
      break;
    }
    EXPECT_TRUE(absl::IsCancelled(result.status())) << result.status();
    EXPECT_EQ(calls, nth) << "nothing is done after it was told to stop";
    ExpectNothingLeft(upstream);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, LoadFaultsTest, ::testing::Bool(),
                         [](const auto& double_quant) { return double_quant.param ? "DoubleQuantized" : "Plain"; });

}  // namespace
}  // namespace gpuledger
