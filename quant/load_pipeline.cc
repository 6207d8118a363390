#include "load_pipeline.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "weight_parts.h"
#include "weight_rules.h"

namespace gpuledger {
namespace {

// Kept weights are read in pieces of this size, so that threads share a large one and an error is seen early.
constexpr Bytes kReadPiece = Bytes(uint64_t{16} << 20);
// Pieces of kept weights begun before the oldest is waited for: more than there are threads in any machine of today
// would not be faster, and progress is told when one is done.
constexpr size_t kReadsAhead = 16;

class Pipeline {
 public:
  Pipeline(const LoadPlan& plan, CachingAllocator& allocator, LoadBackend& backend, const Progress& progress)
      : plan_(plan),
        allocator_(allocator),
        backend_(backend),
        progress_(progress),
        stream_(Stream::Default(allocator.upstream().device())),
        faulty_(plan.options.fault == LoadFault::kNone ? kNoWeight : plan.quantized_count() - 1),
        total_(plan.source_bytes()) {
    if (plan.options.verify) {
      for (const PlannedWeight& w : plan.weights) {
        if (w.action == WeightAction::kQuantize) total_ += w.tensor.size;
      }
    }
  }
  ~Pipeline() { backend_.Abandon(); }  // before the slots and blocks that it uses

  absl::Status Run() {
    weights_.reserve(plan_.weights.size());
    for (const PlannedWeight& weight : plan_.weights) {
      weights_.push_back(
          {weight.tensor, kUnattributed, false, weight.expert, plan_.options.format, Bytes(), Buffer()});
    }
    absl::Status status = BuyStaging();
    const OwnerScope model("model", Role::kOther);
    if (status.ok()) status = QuantizeAll();
    if (status.ok()) ReturnStaging();
    if (status.ok()) status = KeepAll();
    return status;
  }

  PipelineResult Take() { return {std::move(weights_), std::move(errors_), std::move(strays_)}; }

 private:
  static constexpr size_t kNoWeight = SIZE_MAX;

  struct StartedPart {
    WeightParts::Item item;
    Buffer* slot;
  };
  struct StartedRead {
    size_t weight;
    Bytes size;
    bool last;
  };

  bool HasFault(size_t weight, LoadFault fault) const { return weight == faulty_ && plan_.options.fault == fault; }

  bool Kept(size_t weight) const {
    return plan_.weights[weight].action == WeightAction::kKeep || HasFault(weight, LoadFault::kAudit);
  }

  absl::StatusOr<Buffer> Buy(std::string_view owner, Role role, Bytes size) {
    const OwnerScope scope(owner, role);
    return allocator_.Allocate(size, stream_, SiteHere());
  }

  // Sized for the largest weight, and held through the whole quantizing phase.
  absl::Status BuyStaging() {
    if (plan_.slot_size.is_zero()) return absl::OkStatus();  // nothing is quantized
    slot_payer_ = {InternOwner("load/slots"), Role::kStaging};
    for (uint64_t i = 0; i < plan_.options.slots; ++i) {
      absl::StatusOr<Buffer> slot = Buy("load/slots", Role::kStaging, plan_.slot_size);
      if (!slot.ok()) return slot.status();
      slots_.push_back(*std::move(slot));
    }
    absl::StatusOr<Buffer> scratch = Buy("load/scratch", Role::kScratch, plan_.scratch_size);
    if (!scratch.ok()) return scratch.status();
    scratch_ = *std::move(scratch);
    return absl::OkStatus();
  }

  void ReturnStaging() {
    for (Buffer& slot : slots_) slot.Reset();
    scratch_.Reset();
  }

  // As many parts under way as there are slots. Every charge changes on this thread, in the order of the parts.
  absl::Status QuantizeAll() {
    std::vector<size_t> quantized;
    for (size_t w = 0; w < weights_.size(); ++w) {
      if (!Kept(w)) quantized.push_back(w);
    }
    if (plan_.options.verify) errors_.reserve(quantized.size());
    WeightParts parts(plan_, std::move(quantized));
    std::deque<StartedPart> started;
    uint64_t count = 0;
    const auto finish_oldest = [&] {
      const StartedPart oldest = started.front();
      started.pop_front();
      return FinishPart(oldest.item, *oldest.slot);
    };
    for (WeightParts::Item item; parts.Next(&item);) {
      // A weight is compared when all of it has been quantized.
      const bool barrier = item.verify && item.part.first == 0;
      while (!started.empty() && (barrier || started.size() == slots_.size())) {
        if (absl::Status status = finish_oldest(); !status.ok()) return status;
      }
      Buffer& slot = slots_[count++ % slots_.size()];
      if (absl::Status status = StartPart(item, slot); !status.ok()) return status;
      started.push_back({item, &slot});
    }
    while (!started.empty()) {
      if (absl::Status status = finish_oldest(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status StartPart(const WeightParts::Item& item, Buffer& slot) {
    const WeightPart& part = item.part;
    LoadedWeight& weight = weights_[part.weight];
    if (part.first == 0 && !item.verify) {
      if (absl::Status status = BuyQuantized(part.weight); !status.ok()) return status;
    }
    if (absl::Status status = allocator_.Transfer(slot.ptr(), {weight.owner, Role::kStaging}); !status.ok()) {
      return status;
    }
    FloatType type = FloatType::kFloat32;
    FloatTypeOf(weight.tensor.dtype, &type);
    if (item.verify) {
      backend_.Start(VerifyWork{&weight.tensor, type, weight.layout(), part, slot.ptr(), weight.block.ptr()});
    } else {
      backend_.Start(
          QuantizeWork{&weight.tensor, type, weight.layout(), part, slot.ptr(), weight.block.ptr(), scratch_.ptr()});
    }
    return absl::OkStatus();
  }

  absl::Status BuyQuantized(size_t w) {
    LoadedWeight& weight = weights_[w];
    const OwnerScope scope(weight.tensor.name, Role::kQuantized);
    weight.owner = CurrentPayer().owner;
    allocator_.ledger().OpenLineage(weight.owner);
    const OwnerScope payer(HasFault(w, LoadFault::kOwnerless) ? Payer{} : CurrentPayer());
    absl::StatusOr<Buffer> block = allocator_.Allocate(weight.layout().size, stream_, SiteHere());
    if (!block.ok()) return block.status();
    weight.block = *std::move(block);
    weight.quantized = true;
    backend_.PrepareBlock(weight.layout(), weight.block.ptr());
    return absl::OkStatus();
  }

  absl::Status FinishPart(const WeightParts::Item& item, Buffer& slot) {
    const WeightPart& part = item.part;
    LoadedWeight& weight = weights_[part.weight];
    const absl::StatusOr<ErrorSums> errors = backend_.Finish();
    if (!errors.ok()) return errors.status();
    const bool closes = part.last && item.verify == plan_.options.verify;
    Buffer one_too_many;
    if (closes && HasFault(part.weight, LoadFault::kStaging)) {
      const OwnerScope scope(Payer{weight.owner, Role::kStaging});
      absl::StatusOr<Buffer> bought = allocator_.Allocate(plan_.slot_size, stream_, SiteHere());
      if (!bought.ok()) return bought.status();
      one_too_many = *std::move(bought);
    }
    const Bytes size = DtypeSize(weight.tensor.dtype) * part.count;
    if (item.verify) {
      sums_.Add(*errors);
      if (part.last) errors_.push_back(MakeWeightError(weight.tensor.name, weight.format, std::exchange(sums_, {})));
    } else {
      weight.consumed += size;
    }
    if (closes && HasFault(part.weight, LoadFault::kResidual)) {
      strays_.push_back(std::move(slot));
    } else if (absl::Status status = allocator_.Transfer(slot.ptr(), slot_payer_); !status.ok()) {
      return status;
    }
    if (closes) allocator_.ledger().CloseLineage(weight.owner);
    return Advance(size);
  }

  // Straight into their final blocks: kept weights have no staging.
  absl::Status KeepAll() {
    std::deque<StartedRead> started;
    const auto finish_oldest = [&] {
      const StartedRead oldest = started.front();
      started.pop_front();
      return FinishRead(oldest);
    };
    for (size_t w = 0; w < weights_.size(); ++w) {
      if (!Kept(w)) continue;
      if (absl::Status status = BuyKept(w); !status.ok()) return status;
      const LoadedWeight& weight = weights_[w];
      for (Bytes at; at < weight.tensor.size;) {
        if (started.size() == kReadsAhead) {
          if (absl::Status status = finish_oldest(); !status.ok()) return status;
        }
        const Bytes piece = std::min(kReadPiece, weight.tensor.size - at);
        backend_.Start(ReadWork{&weight.tensor, at, piece, weight.block.ptr() + at});
        at += piece;
        started.push_back({w, piece, at == weight.tensor.size});
      }
    }
    while (!started.empty()) {
      if (absl::Status status = finish_oldest(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status BuyKept(size_t w) {
    LoadedWeight& weight = weights_[w];
    const OwnerScope scope(weight.tensor.name, Role::kOther);
    weight.owner = CurrentPayer().owner;
    // Planned 4-bit, and kept by a planted fault.
    if (plan_.weights[w].action == WeightAction::kQuantize) allocator_.ledger().OpenLineage(weight.owner);
    absl::StatusOr<Buffer> block = allocator_.Allocate(weight.tensor.size, stream_, SiteHere());
    if (!block.ok()) return block.status();
    weight.block = *std::move(block);
    return absl::OkStatus();
  }

  absl::Status FinishRead(const StartedRead& read) {
    if (absl::Status status = backend_.Finish().status(); !status.ok()) return status;
    LoadedWeight& weight = weights_[read.weight];
    weight.consumed += read.size;
    const bool planned_4bit = plan_.weights[read.weight].action == WeightAction::kQuantize;
    if (read.last && planned_4bit) allocator_.ledger().CloseLineage(weight.owner);
    return Advance(read.size);
  }

  absl::Status Advance(Bytes size) {
    done_ += size;
    if (!progress_ || progress_(done_, total_)) return absl::OkStatus();
    return absl::CancelledError("stopped; all memory is given back");
  }

  const LoadPlan& plan_;
  CachingAllocator& allocator_;
  LoadBackend& backend_;
  const Progress& progress_;
  const Stream stream_;
  const size_t faulty_;  // the weight that the fault is planted in
  Payer slot_payer_;
  std::vector<Buffer> slots_;
  Buffer scratch_;
  std::vector<LoadedWeight> weights_;
  std::vector<WeightError> errors_;
  ErrorSums sums_;  // of the weight that is being compared
  std::vector<Buffer> strays_;
  Bytes done_, total_;
};

}  // namespace

absl::StatusOr<PipelineResult> RunPipeline(const LoadPlan& plan, CachingAllocator& allocator, LoadBackend& backend,
                                           const Progress& progress) {
  Pipeline pipeline(plan, allocator, backend, progress);
  if (absl::Status status = pipeline.Run(); !status.ok()) return status;
  return pipeline.Take();
}

}  // namespace gpuledger
