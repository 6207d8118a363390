// Consume: the reference-aware last step of a weight's source.
#include <optional>
#include <utility>

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include "gpuledger/process.h"
#include "holders.h"

namespace gpuledger::pytorch {
namespace {

void* DataOf(const c10::StorageImpl& storage) {
  return const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get();
}

// The charge for a storage, and whose ledger has it.
struct Charged {
  LedgerKeeper* keeper;
  LiveAllocation charge;
};

// None if the storage's bytes are in no ledger, of whatever device.
std::optional<Charged> ChargeOf(const c10::StorageImpl& storage) {
  void* const data = DataOf(storage);
  std::optional<Charged> found;
  if (data == nullptr) return found;
  ForEachKeeper([&](LedgerKeeper& keeper) {
    if (found) return;
    const absl::StatusOr<LiveAllocation> charge = keeper.Find(reinterpret_cast<uint64_t>(data));
    if (charge.ok()) found = {&keeper, *charge};
  });
  return found;
}

// In use: a block that waits for another stream's work is freed.
bool StillInUse(const Charged& charged) {
  const absl::StatusOr<LiveAllocation> now = charged.keeper->Find(charged.charge.address.address());
  return now.ok() && now->id == charged.charge.id && !now->pending;
}

Bytes SourceAndStaging(const Charged& charged) {
  const Ledger& ledger = charged.keeper->ledger();
  const OwnerId owner = charged.charge.payer.owner;
  const Usage source = ledger.usage(owner, Role::kSource);
  const Usage staging = ledger.usage(owner, Role::kStaging);
  return source.in_use + source.pending + staging.in_use + staging.pending;
}

absl::Status Refusal(const ConsumeReport& report) {
  std::string paid_by = "not in the ledger";
  if (!report.charged.is_zero()) {
    paid_by = fmt::format("paid by '{}' as {}", OwnerName(report.payer.owner), RoleName(report.payer.role));
  }
  const uint64_t count = report.holders.total();
  return absl::FailedPreconditionError(fmt::format(
      "weight '{}' ({}, {}) is not the caller's alone: {} more {} ({}). Drop them before it is quantized, or consume "
      "it with policy poison (free the bytes all the same) or report (leave them)",
      report.weight, ToString(report.bytes), paid_by, count, count == 1 ? "reference" : "references",
      Describe(report.holders)));
}

// Frees the bytes and keeps the size, so that each later access is looked at, and turned away with the weight's name.
void Poison(c10::StorageImpl& storage, std::string_view weight) {
  const Bytes size(storage.nbytes());
  storage.set_data_ptr_noswap(c10::DataPtr(nullptr, storage.device()));
  storage.release_data_and_set_meta_custom_data_ptr_error_msg_(fmt::format(
      "gpuledger: weight '{}' was consumed: its {} were freed once it was quantized, and this tensor shared them",
      weight, ToString(size)));
}

}  // namespace

absl::StatusOr<ConsumeReport> ConsumeStorage(c10::TensorImpl& impl, OwnReferences own, std::string_view weight,
                                             ConsumePolicy policy, absl::FunctionRef<absl::Status()> read) {
  ConsumeReport report;
  report.weight = weight;
  if (!impl.has_storage() || impl.storage().unsafeGetStorageImpl() == nullptr) {
    return absl::InvalidArgumentError(fmt::format("weight '{}': the tensor has no storage to consume", weight));
  }
  c10::StorageImpl& storage = *impl.storage().unsafeGetStorageImpl();
  if (storage.device_type() == c10::DeviceType::Meta) {
    return absl::InvalidArgumentError(fmt::format("weight '{}' is on the meta device: it has no bytes", weight));
  }
  report.bytes = Bytes(storage.nbytes());
  if (DataOf(storage) == nullptr && !report.bytes.is_zero()) {
    return absl::InvalidArgumentError(fmt::format("weight '{}': the tensor's bytes were consumed before", weight));
  }
  const std::optional<Charged> charged = ChargeOf(storage);
  if (charged) {
    report.payer = charged->charge.payer;
    report.charged = charged->charge.charged;
  }
  report.obstacle = Obstacle(storage);
  if (!report.obstacle.empty() && policy != ConsumePolicy::kReport) {
    return absl::PermissionDeniedError(
        fmt::format("weight '{}' ({}) cannot be freed: {}", weight, ToString(report.bytes), report.obstacle));
  }

  report.holders = CountHolders(impl, own);
  if (report.holders.total() > 0 && policy == ConsumePolicy::kRefuse) return Refusal(report);
  if (absl::Status status = read(); !status.ok()) return status;
  // `read` may have kept the tensor, or exported it.
  report.holders = CountHolders(impl, own);
  const bool shared = report.holders.total() > 0;
  if (shared && policy == ConsumePolicy::kRefuse) return Refusal(report);
  if (report.obstacle.empty()) report.obstacle = Obstacle(storage);
  if (!report.obstacle.empty() && policy != ConsumePolicy::kReport) {
    return absl::PermissionDeniedError(
        fmt::format("weight '{}' ({}) cannot be freed: {}", weight, ToString(report.bytes), report.obstacle));
  }

  if (report.obstacle.empty() && !(shared && policy == ConsumePolicy::kReport)) {
    if (!report.bytes.is_zero()) Poison(storage, weight);
    if (charged && StillInUse(*charged)) {
      return absl::InternalError(
          fmt::format("weight '{}': its storage was dropped, but the ledger still has it", weight));
    }
    report.freed = true;
  }
  if (charged) report.remaining = SourceAndStaging(*charged);
  return report;
}

absl::StatusOr<ConsumeReport> Consume(at::Tensor& tensor, std::string_view weight, ConsumePolicy policy,
                                      absl::FunctionRef<absl::Status(const at::Tensor&)> read) {
  if (!tensor.defined()) {
    return absl::InvalidArgumentError(fmt::format("weight '{}': an undefined tensor cannot be consumed", weight));
  }
  absl::StatusOr<ConsumeReport> report = ConsumeStorage(*tensor.unsafeGetTensorImpl(), {.handles = 1}, weight, policy,
                                                        [&] { return read(std::as_const(tensor)); });
  if (report.ok() && report->freed) tensor.reset();
  return report;
}

absl::StatusOr<ConsumeReport> Consume(at::Tensor& tensor, std::string_view weight, ConsumePolicy policy) {
  return Consume(tensor, weight, policy, [](const at::Tensor&) { return absl::OkStatus(); });
}

}  // namespace gpuledger::pytorch
