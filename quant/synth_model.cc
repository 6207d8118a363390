#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <utility>

#include "file_io.h"
#include "gpuledger/synth.h"
#include "json_text.h"
#include "synth_families.h"
#include "synth_shapes.h"
#include "synth_values.h"

namespace gpuledger {
namespace {

class SynthSource final : public ModelSource {
 public:
  SynthSource(const std::string& shapes, std::string config, std::vector<TensorInfo> tensors, uint64_t seed)
      : name_("synth:" + shapes), config_(std::move(config)), tensors_(std::move(tensors)), seed_(seed) {}

  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] const std::string& directory() const override { return directory_; }
  [[nodiscard]] const std::string& config() const override { return config_; }
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const override { return tensors_; }

  [[nodiscard]] absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const override {
    if (!HasSynthValues(tensor.dtype) || offset > tensor.size || Bytes(out.size()) > tensor.size - offset) {
      return absl::InvalidArgumentError(fmt::format("{}: tensor {} of {} bytes has no {} bytes from byte {}", name_,
                                                    Quoted(tensor.name), tensor.size.count(), out.size(),
                                                    offset.count()));
    }
    FillSynthValues(seed_, tensor.name, tensor.dtype, offset.count(), out);
    return absl::OkStatus();
  }

 private:
  const std::string name_;
  const std::string directory_;
  const std::string config_;
  const std::vector<TensorInfo> tensors_;
  const uint64_t seed_;
};

std::vector<std::string_view> KnownNames() {
  std::vector<std::string_view> names;
  for (const SynthShape& shape : SynthShapes()) names.push_back(shape.name);
  return names;
}

absl::StatusOr<std::string> ReadConfig(const std::string& shapes) {
  const std::string_view known = KnownConfig(shapes);
  if (!known.empty()) return std::string(known);
  if (!Exists(shapes)) {
    return absl::NotFoundError(fmt::format("{}: is neither the path of a config.json nor one of {}", Quoted(shapes),
                                           fmt::join(KnownNames(), ", ")));
  }
  return ReadSmallFile(shapes, kMostConfigBytes);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ModelSource>> SynthModel(const std::string& shapes, uint64_t seed) {
  absl::StatusOr<std::string> config = ReadConfig(shapes);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::vector<TensorInfo>> tensors = ShapesFromConfig(shapes, *config);
  if (!tensors.ok()) return tensors.status();
  return std::make_shared<const SynthSource>(shapes, *std::move(config), *std::move(tensors), seed);
}

}  // namespace gpuledger
