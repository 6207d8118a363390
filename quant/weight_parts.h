// quant/weight_parts.h - the parts of all quantized weights in order: what goes through the slots, one after the other.
#pragma once

#include <algorithm>
#include <vector>

#include "gpuledger/plan.h"
#include "load_pipeline.h"

namespace gpuledger {

// An iterator and no list: a large model has too many parts. With verify each weight's parts come a second time.
class WeightParts {
 public:
  struct Item {
    WeightPart part;
    bool verify;
  };

  // `weights`: indices of the plan's weights that are quantized; none is empty.
  WeightParts(const LoadPlan& plan, std::vector<size_t> weights)
      : plan_(plan), weights_(std::move(weights)), verify_pass_(false) {}

  // False at the end.
  bool Next(Item* item) {
    if (at_ == weights_.size()) return false;
    const TensorInfo& tensor = plan_.weights[weights_[at_]].tensor;
    const uint64_t most = PartElements(tensor);
    const uint64_t count = std::min(tensor.elements - first_, most);
    const bool last = first_ + count == tensor.elements;
    *item = {{weights_[at_], at_, BlockCount(tensor.elements, most), first_, count, last}, verify_pass_};
    first_ = last ? 0 : first_ + count;
    if (!last) return true;
    verify_pass_ = plan_.options.verify && !verify_pass_;
    if (!verify_pass_) at_ += 1;
    return true;
  }

 private:
  // Whole blocks, unless the weight fits into a slot.
  uint64_t PartElements(const TensorInfo& tensor) const {
    const uint64_t room = plan_.slot_size / DtypeSize(tensor.dtype);
    return room >= tensor.elements ? tensor.elements : room - room % plan_.options.format.block;
  }

  const LoadPlan& plan_;
  const std::vector<size_t> weights_;
  size_t at_ = 0;
  uint64_t first_ = 0;
  bool verify_pass_;
};

}  // namespace gpuledger
