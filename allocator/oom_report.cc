// What people read: the out-of-memory report and the statistics page.
#include <algorithm>

#include <fmt/format.h>

#include "allocator_impl.h"
#include "text.h"

namespace gpuledger {
namespace {

constexpr std::string_view kEquation = "reserved = in use + pending + cached";

std::string Equation(const Totals& t) {
  return fmt::format("  {}\n    {} = {} + {} + {}\n", kEquation, ToString(t.reserved), ToString(t.in_use), ToString(t.pending),
                     ToString(t.cached));
}

std::string CapText(Bytes cap) { return cap == Bytes::Max() ? "none" : Human(cap); }

// "    4.00 MiB (4,194,304 B)  model/x [quantized], 3 blocks", at most `limit`, and what the rest sums to.
std::string OwnerLines(const std::vector<OwnerUsage>& rows, uint64_t limit) {
  std::string text;
  Bytes rest;
  uint64_t shown = 0, hidden = 0;
  for (const OwnerUsage& row : rows) {
    if (row.usage.in_use.is_zero()) continue;
    if (shown == limit) {
      rest += row.usage.in_use;
      ++hidden;
      continue;
    }
    ++shown;
    text += fmt::format("    {:>30}  {} [{}], {} block{}\n", Human(row.usage.in_use), OwnerName(row.payer.owner), RoleName(row.payer.role),
                        row.usage.count, row.usage.count == 1 ? "" : "s");
  }
  if (hidden > 0) text += fmt::format("    {:>30}  {} more owner{}\n", Human(rest), hidden, hidden == 1 ? "" : "s");
  if (shown == 0) text += "    nobody\n";
  return text;
}

}  // namespace

std::string CachingAllocator::Impl::OutOfMemoryReport(Stream stream, Bytes requested, Payer payer, std::string_view why) const {
  const Totals t = totals();
  Bytes largest, stranded;
  for (const std::unique_ptr<Pool>& p : placement.pools()) {
    MutexLock lock(p->mutex);
    for (const Block* b = p->first(); b != nullptr; b = b->right) {
      if (!b->cached()) continue;
      if (p->stream() == stream) largest = std::max(largest, b->size);
      stranded += b->size;
    }
    stranded -= p->spare();
  }
  const Shortage shortage = mapping ? placement.shortage() : whole_range_shortage;
  const Bytes charged = SizeClass::For(requested).charged();
  std::string text = fmt::format("out of memory on device {} ({}): {} for {} [{}] could not be had: {}\n", ledger.device().value(), upstream.name(),
                                 Human(requested), OwnerName(payer.owner), RoleName(payer.role), why);
  text += Equation(t);
  text += fmt::format("  cap {}; largest cached block of this stream {}; cached in pieces under one handle {}\n", CapText(t.cap), Human(largest), Human(stranded));
  text += "  top owners of what is in use:\n" + OwnerLines(ledger.usage_by_owner(), options.report_owners);
  text += "  what would help: ";
  if (shortage == Shortage::kCap && charged + granule < Bytes::Max() - t.reserved) {
    const Bytes need = (t.in_use + t.pending + stranded + charged).RoundUpTo(granule);
    text += fmt::format("a cap of {} or more (GPULEDGER_CAP), or freeing {}", Human(std::max(need, t.reserved + granule)), Human(charged));
  } else if (shortage == Shortage::kAddresses) {
    text += "a smaller request: no pool has so many addresses";
  } else {
    text += fmt::format("freeing {}, or memory that others hold on this device", Human(charged));
  }
  if (!t.pending.is_zero()) text += fmt::format("; {} is pending on other streams", Human(t.pending));
  return text;
}

std::string CachingAllocator::Report() const {
  const Ledger& l = ledger();
  const Totals t = totals();
  uint64_t limit = 0;
  {
    MutexLock lock(impl_->mutex);
    limit = impl_->options.report_owners;
  }
  const Usage usage = l.usage();
  std::string text = fmt::format("device {} ({})\n", l.device().value(), upstream().name());
  text += Equation(t);
  text += fmt::format("  in use = requested + rounding\n    {} = {} + {}\n", ToString(usage.in_use), ToString(usage.requested), ToString(usage.in_use - usage.requested));
  text += fmt::format("  peak in use {}, peak reserved {}, cap {}\n", Human(usage.peak), Human(t.peak_reserved), CapText(t.cap));
  text += "  owners of what is in use:\n" + OwnerLines(l.usage_by_owner(), limit);
  return text;
}

}  // namespace gpuledger
