// Which class a block belongs to: the predicates, in their order.
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <tuple>

#include "gpuledger/leak_classes.h"

namespace gpuledger {
namespace {

template <class Id>
bool Has(const std::vector<Id>& sorted, Id id) {
  return std::binary_search(sorted.begin(), sorted.end(), id);
}

bool IsStaged(const LiveBlock& block) { return block.payer.role == Role::kSource || block.payer.role == Role::kStaging; }

// "float16 [4096, 1024]": its dtype, and its shape.
std::pair<std::string_view, std::string_view> DtypeAndShape(std::string_view tensor) {
  const size_t space = tensor.find(' ');
  if (space == std::string_view::npos) return {tensor, {}};
  return {tensor.substr(0, space), tensor.substr(space + 1)};
}

// Blocks that another one of the same owner seems to have replaced, though nobody said so. Two signs, both narrow, because
// an owner may be a whole model: a source or staging beside a quantized one; or just two tensors of one shape and role, of
// different dtypes, where the older one is the source of the newer. While a lineage is open the conversion is under way.
class Undeclared {
 public:
  Undeclared(const std::vector<LiveBlock>& blocks, const VerdictContext& context) {
    std::map<OwnerId, bool> quantized;
    std::map<std::tuple<OwnerId, Role, std::string_view>, std::vector<size_t>> alike;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const LiveBlock& b = blocks[i];
      if (b.pending || b.gone || b.payer.owner == kUnattributed || Has(context.open_lineages, b.payer.owner)) continue;
      if (b.payer.role == Role::kQuantized) quantized[b.payer.owner] = true;
      const std::string_view shape = DtypeAndShape(b.tensor).second;
      const bool of_one_weight = IsStaged(b) || b.payer.role == Role::kQuantized || b.payer.role == Role::kOther;
      if (of_one_weight && !shape.empty() && shape != "[]") alike[{b.payer.owner, b.payer.role, shape}].push_back(i);
    }
    old_.resize(blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
      const LiveBlock& b = blocks[i];
      old_[i] = IsStaged(b) && !b.pending && !b.gone && quantized.contains(b.payer.owner);
    }
    for (const auto& [what, indices] : alike) {
      if (indices.size() != 2) continue;
      const auto [a, b] = std::minmax(indices[0], indices[1], [&](size_t x, size_t y) {
        return std::tuple(blocks[x].allocated, blocks[x].id) < std::tuple(blocks[y].allocated, blocks[y].id);
      });
      if (DtypeAndShape(blocks[a].tensor).first != DtypeAndShape(blocks[b].tensor).first) old_[a] = true;
    }
  }
  [[nodiscard]] bool Is(size_t block) const { return old_[block]; }

 private:
  std::vector<bool> old_;
};

bool ViewPins(const LiveBlock& block, uint32_t permille) {
  if (block.largest_view == UINT64_MAX) return false;
  // Shares of the storage in a thousandth: view / size < permille / 1000, without overflow.
  return static_cast<unsigned __int128>(block.largest_view) * 1000u < static_cast<unsigned __int128>(block.requested.count()) * permille;
}

}  // namespace

std::vector<BlockVerdict> Classify(const std::vector<LiveBlock>& blocks, const VerdictContext& context) {
  const Undeclared undeclared(blocks, context);
  const bool settled = context.settled;
  std::vector<BlockVerdict> verdicts;
  verdicts.reserve(blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    const LiveBlock& b = blocks[i];
    const auto verdict = [&]() -> BlockVerdict {
      // A program that settled has had its verdict: what it keeps to its end it may keep.
      if (context.ended && !settled && !b.pending && !b.gone) return {LeakClass::kUnbalanced, Severity::kError};
      if (b.pending) return {LeakClass::kDeferred, Severity::kNone};
      if (settled && b.unreachable && !b.gone) return {LeakClass::kLost, Severity::kError};
      if (settled && b.gone && b.gone_by == SettleStep::kCollected) return {LeakClass::kCycle, Severity::kWarning};
      // Freed meanwhile by the program itself, or a workspace that a library had: it was held on purpose.
      if (b.gone) return {LeakClass::kKept, Severity::kNone};
      if (settled && !b.tracebacks.empty()) return {LeakClass::kTracebackHeld, Severity::kError};
      // These two were declared: that the block should be gone is known without a settle.
      if (b.payer.scope != ScopeId(0) && Has(context.ended_scopes, b.payer.scope)) return {LeakClass::kScopeEscape, Severity::kError};
      if (IsStaged(b) && Has(context.closed_lineages, b.payer.owner)) return {LeakClass::kSuperseded, Severity::kError};
      if (settled && undeclared.Is(i)) return {LeakClass::kSuperseded, Severity::kWarning};
      if (settled && ViewPins(b, context.view_permille)) return {LeakClass::kViewPinned, Severity::kWarning};
      return {LeakClass::kKept, Severity::kNone, !settled};
    }();
    verdicts.push_back(verdict);
  }
  return verdicts;
}

}  // namespace gpuledger
