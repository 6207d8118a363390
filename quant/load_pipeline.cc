#include "load_pipeline.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "weight_rules.h"

namespace gpuledger {
namespace {

// Kept weights are read in pieces of this size, so that progress moves and an error is seen early.
constexpr Bytes kReadPiece = Bytes(uint64_t{16} << 20);

// What of which weight goes through a slot in one go.
struct Part {
  size_t weight;
  uint64_t first;
  uint64_t count;
  bool last;
};

class Pipeline {
 public:
  Pipeline(const LoadPlan& plan, CachingAllocator& allocator, LoadBackend& backend, const LoadProgress& progress)
      : plan_(plan),
        allocator_(allocator),
        backend_(backend),
        progress_(progress),
        stream_(Stream::Default(allocator.upstream().device())),
        faulty_(plan.options.fault == LoadFault::kNone ? kNoWeight : plan.quantized_count() - 1) {
    total_ = plan.source_bytes();
  }
  ~Pipeline() { backend_.AbandonReads(); }  // before the slots that they read into

  absl::Status Run() {
    weights_.reserve(plan_.weights.size());
    for (const PlannedWeight& weight : plan_.weights) {
      weights_.push_back({weight.tensor, kUnattributed, false, Bytes(), Buffer()});
    }
    absl::Status status = BuySlots();
    const OwnerScope model("model", Role::kOther);
    if (status.ok()) status = QuantizeAll();
    if (status.ok()) ReturnSlots();
    for (size_t w = 0; status.ok() && w < plan_.weights.size(); ++w) {
      if (Kept(w)) status = Keep(w);
    }
    return status;
  }

  PipelineResult Take() { return {std::move(weights_), std::move(strays_)}; }

 private:
  static constexpr size_t kNoWeight = SIZE_MAX;

  bool HasFault(size_t weight, LoadFault fault) const { return weight == faulty_ && plan_.options.fault == fault; }

  bool Kept(size_t weight) const {
    return plan_.weights[weight].action == WeightAction::kKeep || HasFault(weight, LoadFault::kAudit);
  }

  absl::Status BuySlots() {
    const OwnerScope scope("load/slots", Role::kStaging);
    slot_payer_ = CurrentPayer();
    if (plan_.slot_size.is_zero()) return absl::OkStatus();  // nothing is quantized
    for (uint64_t i = 0; i < plan_.options.slots; ++i) {
      absl::StatusOr<Buffer> slot = allocator_.Allocate(plan_.slot_size, stream_, SiteHere());
      if (!slot.ok()) return slot.status();
      slots_.push_back(*std::move(slot));
    }
    return absl::OkStatus();
  }

  void ReturnSlots() {
    for (Buffer& slot : slots_) slot.Reset();
  }

  // The parts of all quantized weights in order, as an iterator: a large model has too many to list.
  bool NextPart(Part* part) {
    while (next_weight_ < weights_.size() && (Kept(next_weight_) || next_element_ == elements(next_weight_))) {
      next_weight_ += 1;
      next_element_ = 0;
    }
    if (next_weight_ == weights_.size()) return false;
    const uint64_t room = plan_.slot_size / DtypeSize(weights_[next_weight_].tensor.dtype);
    const uint64_t left = elements(next_weight_) - next_element_;
    const uint64_t count = std::min(left, room - room % kNf4BlockSize);
    *part = {next_weight_, next_element_, count, count == left};
    next_element_ += count;
    return true;
  }

  uint64_t elements(size_t weight) const { return weights_[weight].tensor.elements; }

  // As many reads ahead as there are slots. Every charge changes on this thread, in the order of the parts.
  absl::Status QuantizeAll() {
    std::deque<std::pair<Part, Buffer*>> started;
    uint64_t parts = 0;
    Part part;
    bool more = NextPart(&part);
    while (more || !started.empty()) {
      while (more && started.size() < slots_.size()) {
        Buffer& slot = slots_[parts % slots_.size()];
        if (absl::Status status = StartPart(part, slot); !status.ok()) return status;
        started.emplace_back(part, &slot);
        parts += 1;
        more = NextPart(&part);
      }
      if (absl::Status status = FinishPart(started.front().first, *started.front().second); !status.ok()) return status;
      started.pop_front();
    }
    return absl::OkStatus();
  }

  absl::Status StartPart(const Part& part, Buffer& slot) {
    LoadedWeight& weight = weights_[part.weight];
    if (part.first == 0) {
      if (absl::Status status = BuyQuantized(part.weight); !status.ok()) return status;
    }
    if (absl::Status status = allocator_.Transfer(slot.ptr(), {weight.owner, Role::kStaging}); !status.ok()) {
      return status;
    }
    const Bytes element = DtypeSize(weight.tensor.dtype);
    backend_.StartRead(weight.tensor, element * part.first, element * part.count, slot.ptr());
    return absl::OkStatus();
  }

  absl::Status BuyQuantized(size_t w) {
    LoadedWeight& weight = weights_[w];
    const Nf4Layout layout = Nf4Layout::Of(weight.tensor.elements);
    const OwnerScope scope(weight.tensor.name, Role::kQuantized);
    weight.owner = CurrentPayer().owner;
    allocator_.ledger().OpenLineage(weight.owner);
    const OwnerScope payer(HasFault(w, LoadFault::kOwnerless) ? Payer{} : CurrentPayer());
    absl::StatusOr<Buffer> block = allocator_.Allocate(layout.size, stream_, SiteHere());
    if (!block.ok()) return block.status();
    weight.block = *std::move(block);
    weight.quantized = true;
    backend_.PrepareBlock(layout, weight.block.ptr());
    return absl::OkStatus();
  }

  absl::Status FinishPart(const Part& part, Buffer& slot) {
    LoadedWeight& weight = weights_[part.weight];
    if (absl::Status status = backend_.FinishRead(); !status.ok()) return status;
    Buffer one_too_many;
    if (HasFault(part.weight, LoadFault::kStaging) && part.last) {
      const OwnerScope scope(Payer{weight.owner, Role::kStaging});
      absl::StatusOr<Buffer> bought = allocator_.Allocate(plan_.slot_size, stream_, SiteHere());
      if (!bought.ok()) return bought.status();
      one_too_many = *std::move(bought);
    }
    FloatType type = FloatType::kFloat32;
    FloatTypeOf(weight.tensor.dtype, &type);
    backend_.Quantize(Nf4Layout::Of(weight.tensor.elements),
                      {type, part.first, part.count, slot.ptr(), weight.block.ptr()});
    Consumed(weight, DtypeSize(weight.tensor.dtype) * part.count);
    if (HasFault(part.weight, LoadFault::kResidual) && part.last) {
      strays_.push_back(std::move(slot));
    } else if (absl::Status status = allocator_.Transfer(slot.ptr(), slot_payer_); !status.ok()) {
      return status;
    }
    if (part.last) allocator_.ledger().CloseLineage(weight.owner);
    return absl::OkStatus();
  }

  // Straight into its final block: a kept weight has no staging.
  absl::Status Keep(size_t w) {
    LoadedWeight& weight = weights_[w];
    const OwnerScope scope(weight.tensor.name, Role::kOther);
    weight.owner = CurrentPayer().owner;
    const bool was_to_be_quantized = plan_.weights[w].action == WeightAction::kQuantize;
    if (was_to_be_quantized) allocator_.ledger().OpenLineage(weight.owner);
    const Bytes size = weight.tensor.size;
    absl::StatusOr<Buffer> block = allocator_.Allocate(size, stream_, SiteHere());
    if (!block.ok()) return block.status();
    weight.block = *std::move(block);
    for (Bytes at; at < size;) {
      const Bytes piece = std::min(kReadPiece, size - at);
      backend_.StartRead(weight.tensor, at, piece, weight.block.ptr() + at);
      if (absl::Status status = backend_.FinishRead(); !status.ok()) return status;
      Consumed(weight, piece);
      at += piece;
    }
    if (was_to_be_quantized) allocator_.ledger().CloseLineage(weight.owner);
    return absl::OkStatus();
  }

  void Consumed(LoadedWeight& weight, Bytes bytes) {
    weight.consumed += bytes;
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  const LoadPlan& plan_;
  CachingAllocator& allocator_;
  LoadBackend& backend_;
  const LoadProgress& progress_;
  const Stream stream_;
  const size_t faulty_;  // the weight that the fault is planted in
  Payer slot_payer_;
  std::vector<Buffer> slots_;
  std::vector<LoadedWeight> weights_;
  std::vector<Buffer> strays_;
  size_t next_weight_ = 0;
  uint64_t next_element_ = 0;
  Bytes done_, total_;
};

}  // namespace

absl::StatusOr<PipelineResult> RunPipeline(const LoadPlan& plan, CachingAllocator& allocator, LoadBackend& backend,
                                           const LoadProgress& progress) {
  Pipeline pipeline(plan, allocator, backend, progress);
  if (absl::Status status = pipeline.Run(); !status.ok()) return status;
  return pipeline.Take();
}

}  // namespace gpuledger
