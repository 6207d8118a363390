// leaky_load DIR - a 4-bit load with the bug of transformers PR #44728, and what the ledger says about it.
//
// Each weight is read into an at::Tensor (role source) and quantized to NF4 (role quantized). Three references to the
// source stay alive while the next weights load: another tensor on its storage (as Params4bit makes one with
// _make_subclass), a local, and the caller's list. So no source is ever freed, and the load peaks at the sum of both
// models. The report at the end counts the holders of each weight; nothing in it is known from this text.
//
// With --poison, Consume frees each source although it is shared, and the load leaves nothing behind.
#include <unistd.h>

#include <coroutine>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "gpuledger/ledger.h"
#include "gpuledger/codec.h"
#include "gpuledger/plan.h"
#include "gpuledger/safetensors.h"
#include "gpuledger/torch.h"

namespace {

using gpuledger::Bytes;
using gpuledger::Ledger;
using gpuledger::OwnerId;
using gpuledger::OwnerScope;
using gpuledger::PlannedWeight;
using gpuledger::Role;
namespace pytorch = gpuledger::pytorch;

// The exit codes of the gpuledger command.
enum ExitCode { kFine = 0, kInternal = 1, kBadInput = 2, kResidual = 3, kOutOfMemory = 4 };

struct Options {
  std::string directory;
  bool all = false;
  bool poison = false;
};

struct Quantized {
  at::Tensor packed;
  at::Tensor absmax;
};

// What a generator function of Python is: runs to its yield, and keeps its locals until it is dropped.
class Generator {
 public:
  struct promise_type {
    Quantized value;
    std::exception_ptr error;
    Generator get_return_object() { return Generator(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_never initial_suspend() { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    std::suspend_always yield_value(Quantized yielded) {
      value = std::move(yielded);
      return {};
    }
    void return_void() {}
    void unhandled_exception() { error = std::current_exception(); }
  };
  Generator(Generator&& other) noexcept : frame_(std::exchange(other.frame_, {})) {}
  Generator& operator=(Generator&&) = delete;
  ~Generator() {
    if (frame_) frame_.destroy();
  }
  // What it yielded; throws what it threw.
  [[nodiscard]] const Quantized& value() const {
    if (frame_.promise().error) std::rethrow_exception(frame_.promise().error);
    return frame_.promise().value;
  }

 private:
  explicit Generator(std::coroutine_handle<promise_type> frame) : frame_(frame) {}
  std::coroutine_handle<promise_type> frame_;
};

// False for a dtype that is not quantized.
bool FloatTypeOf(gpuledger::Dtype dtype, gpuledger::FloatType* type, c10::ScalarType* scalar) {
  switch (dtype) {
    case gpuledger::Dtype::kF32:
      *type = gpuledger::FloatType::kFloat32;
      *scalar = at::kFloat;
      return true;
    case gpuledger::Dtype::kF16:
      *type = gpuledger::FloatType::kFloat16;
      *scalar = at::kHalf;
      return true;
    case gpuledger::Dtype::kBF16:
      *type = gpuledger::FloatType::kBFloat16;
      *scalar = at::kBFloat16;
      return true;
    default: return false;
  }
}

Quantized QuantizeInto4Bit(const at::Tensor& source, const PlannedWeight& weight) {
  const OwnerScope scope(weight.tensor.name, Role::kQuantized);
  const uint64_t elements = weight.tensor.elements;
  const gpuledger::FourBitFormat nf4;
  const auto packed_bytes = static_cast<int64_t>(gpuledger::PackedBytes(elements).count());
  const auto blocks = static_cast<int64_t>(gpuledger::BlockCount(elements, nf4.block));
  Quantized out{at::empty({packed_bytes}, at::kByte), at::empty({blocks}, at::kFloat)};
  gpuledger::FloatType type{};
  c10::ScalarType scalar{};
  FloatTypeOf(weight.tensor.dtype, &type, &scalar);
  gpuledger::Quantize4Bit(nf4, gpuledger::Dialect::kCpu, type, source.const_data_ptr(), elements,
                          {out.packed.mutable_data_ptr<uint8_t>(), static_cast<size_t>(packed_bytes)},
                          {out.absmax.mutable_data_ptr<float>(), static_cast<size_t>(blocks)});
  return out;
}

// Written like Bnb4bitQuantize.convert: `value` and `parameter` live as long as this frame.
Generator Convert(const std::vector<at::Tensor>& input_dict, const PlannedWeight& weight, bool poison) {
  at::Tensor value = input_dict.front();
  const at::Tensor parameter = value.detach();  // as _make_subclass: a new tensor on the same storage
  Quantized quantized = QuantizeInto4Bit(parameter, weight);
  if (poison) {
    const auto consumed = pytorch::Consume(value, weight.tensor.name, pytorch::ConsumePolicy::kPoison);
    TORCH_CHECK(consumed.ok(), std::string(consumed.status().message()));
  }
  co_yield std::move(quantized);
}

at::Tensor ReadSource(const gpuledger::ModelSource& model, const PlannedWeight& weight, absl::Status* status) {
  const OwnerScope scope(weight.tensor.name, Role::kSource);
  gpuledger::FloatType type{};
  c10::ScalarType scalar{};
  if (!FloatTypeOf(weight.tensor.dtype, &type, &scalar)) {
    *status = absl::InvalidArgumentError(weight.tensor.name + " is planned to be quantized, but holds no floats");
    return {};
  }
  const std::vector<int64_t> shape(weight.tensor.shape.begin(), weight.tensor.shape.end());
  at::Tensor source = at::empty(shape, scalar);
  *status = model.Read(weight.tensor, Bytes(),
                       {static_cast<std::byte*>(source.mutable_data_ptr()), weight.tensor.size.count()});
  return source;
}

// One conversion in flight: the caller's list, and the suspended frame of Convert.
struct Conversion {
  std::vector<at::Tensor> input_dict;
  std::optional<Generator> generator;
};

absl::Status Load(const gpuledger::LoadPlan& plan, bool poison, std::deque<Conversion>* conversions, Bytes* quantized) {
  Ledger& ledger = pytorch::CpuAllocator()->ledger();
  for (const PlannedWeight& weight : plan.weights) {
    if (weight.action != gpuledger::WeightAction::kQuantize) continue;
    const OwnerId owner = gpuledger::InternOwner(weight.tensor.name);
    ledger.OpenLineage(owner);
    absl::Status status;
    Conversion& conversion = conversions->emplace_back();  // stays where it is: Convert refers to its list
    conversion.input_dict.push_back(ReadSource(*plan.source, weight, &status));
    if (!status.ok()) return status;
    pytorch::WatchSource(conversion.input_dict.front(), owner);
    conversion.generator.emplace(Convert(conversion.input_dict, weight, poison));
    const Quantized& result = conversion.generator->value();
    *quantized += Bytes(result.packed.nbytes()) + Bytes(result.absmax.nbytes());
    ledger.CloseLineage(owner);
  }
  return absl::OkStatus();
}

std::string Mebibytes(Bytes bytes) {
  return fmt::format("{:.2f} MiB", static_cast<double>(bytes.count()) / (1024.0 * 1024.0));
}

int Fail(const absl::Status& status) {
  fmt::print(stderr, "leaky_load: {}\n", std::string(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied: return kBadInput;
    case absl::StatusCode::kResourceExhausted: return kOutOfMemory;
    default: return kInternal;
  }
}

int Run(const Options& options) {
  if (absl::Status status = pytorch::InstallCpuAllocator(); !status.ok()) return Fail(status);
  absl::StatusOr<std::shared_ptr<const gpuledger::ModelSource>> source = gpuledger::OpenModel(options.directory);
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<gpuledger::LoadPlan> plan = gpuledger::PlanLoad(*std::move(source), {});
  if (!plan.ok()) return Fail(plan.status());

  std::deque<Conversion> conversions;
  Bytes quantized;
  if (absl::Status status = Load(*plan, options.poison, &conversions, &quantized); !status.ok()) return Fail(status);

  const char* const no_colour = std::getenv("NO_COLOR");
  const bool colour = isatty(STDOUT_FILENO) != 0 && (no_colour == nullptr || *no_colour == '\0');
  const uint64_t shown = options.all ? std::numeric_limits<uint64_t>::max() : 12;
  fmt::print("{}", pytorch::ResidualReport({.weights = shown, .collapse = !options.all, .colour = colour}));

  const Ledger& ledger = pytorch::CpuAllocator()->ledger();
  fmt::print("\nThe load peaked at {} in use and ends with {}, of which {} are the 4-bit weights.\n",
             Mebibytes(ledger.usage().peak), Mebibytes(ledger.usage().in_use), Mebibytes(quantized));
  const size_t left = ledger.residuals().size();
  if (!options.all && left > 0) {
    fmt::print("A line for each of the {}: --all. The same load without the leak: --poison.\n", left);
  }
  return left == 0 ? kFine : kResidual;
}

bool Parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--all") {
      options->all = true;
    } else if (argument == "--poison") {
      options->poison = true;
    } else if (!argument.starts_with("-") && options->directory.empty()) {
      options->directory = argument;
    } else {
      return false;
    }
  }
  return !options->directory.empty();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) {
    fmt::print(stderr, "usage: leaky_load DIR [--all] [--poison]\nDIR holds config.json and model.safetensors\n");
    return kBadInput;
  }
  try {
    return Run(options);
  } catch (const c10::OutOfMemoryError& error) {
    fmt::print(stderr, "leaky_load: {}\n", error.what_without_backtrace());
    return kOutOfMemory;
  } catch (const std::exception& error) {
    fmt::print(stderr, "leaky_load: {}\n", error.what());
    return kInternal;
  }
}
