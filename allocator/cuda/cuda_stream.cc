#include "gpuledger/cuda_stream.h"

#include <string_view>
#include <utility>

#include "context.h"

namespace gpuledger {

struct CudaStream::State {
  // Makes a call inside the context; `what` is the method, `name` the driver's function.
  template <class Call>
  absl::Status Do(std::string_view what, std::string_view name, const Call& call) const {
    const cuda::Inside inside(*context);
    if (!inside.ok()) return inside.status(what);
    return cuda::CudaStatus(context->driver(), call(context->driver()), name, what);
  }

  std::unique_ptr<cuda::PrimaryContext> context;
  DeviceId device;
  cuda::StreamHandle stream = nullptr;
};

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(DeviceId device) {
  const absl::StatusOr<const cuda::Driver*> driver = cuda::LoadDriver();
  if (!driver.ok()) return driver.status();
  absl::StatusOr<std::unique_ptr<cuda::PrimaryContext>> context = cuda::PrimaryContext::Retain(**driver, device.value());
  if (!context.ok()) return context.status();
  auto state = std::make_unique<State>(State{*std::move(context), device});
  const absl::Status status = state->Do("CudaStream::Create", "cuStreamCreate", [&](const cuda::Driver& d) {
    return d.cuStreamCreate(&state->stream, cuda::kStreamNonBlocking);
  });
  if (!status.ok()) return status;
  return std::unique_ptr<CudaStream>(new CudaStream(std::move(state)));
}

CudaStream::CudaStream(std::unique_ptr<State> state) : state_(std::move(state)) {}

CudaStream::~CudaStream() {
  const cuda::Inside inside(*state_->context);
  if (!inside.ok()) return;
  state_->context->driver().cuStreamSynchronize(state_->stream);
  state_->context->driver().cuStreamDestroy(state_->stream);
}

Stream CudaStream::stream() const { return {state_->device, state_->stream}; }

absl::Status CudaStream::Fill(DevicePtr address, uint32_t word, uint64_t count) {
  return state_->Do("CudaStream::Fill", "cuMemsetD32Async", [&](const cuda::Driver& d) {
    return d.cuMemsetD32Async(address.address(), word, count, state_->stream);
  });
}

absl::Status CudaStream::Read(DevicePtr address, std::span<std::byte> into) {
  return state_->Do("CudaStream::Read", "cuMemcpyDtoHAsync", [&](const cuda::Driver& d) {
    return d.cuMemcpyDtoHAsync(into.data(), address.address(), into.size(), state_->stream);
  });
}

absl::Status CudaStream::Wait() {
  return state_->Do("CudaStream::Wait", "cuStreamSynchronize",
                    [&](const cuda::Driver& d) { return d.cuStreamSynchronize(state_->stream); });
}

}  // namespace gpuledger
