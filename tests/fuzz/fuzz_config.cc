// config.json with its quantization_config: refused or understood, and what is written of it is JSON again.
#include <string>
#include <vector>

#include "checkpoint_files.h"
#include "fuzz_files.h"
#include "json_text.h"
#include "quantization_config.h"

using namespace gpuledger;

namespace {

class Source final : public ModelSource {
 public:
  explicit Source(std::string_view config) : config_(config) {}
  const std::string& name() const override { return name_; }
  const std::string& directory() const override { return nothing_; }
  const std::string& config() const override { return config_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  absl::Status Read(const TensorInfo&, Bytes, std::span<std::byte>) const override { return absl::OkStatus(); }

 private:
  std::string name_ = "fuzz", nothing_, config_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Source source(TextOf(data, size));
  const absl::StatusOr<ConfiguredMethod> method = MethodOf(source);
  const std::vector<CheckpointTensor> tensors = {
      QuantizedWeight{"a.b.weight", {1, 1}, FloatType::kBFloat16, {}, false, {}}};
  const absl::StatusOr<std::string> config = MakeCheckpointConfig(source, tensors);
  Ensure(method.ok() == config.ok());
  if (!method.ok()) {
    Ensure(method.status().code() == absl::StatusCode::kInvalidArgument && method.status().message().size() < 2000);
    return 0;
  }
  Ensure(*MethodOf(Source(*config)) == ConfiguredMethod::kFourBit);
  return 0;
}
