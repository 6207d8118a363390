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

absl::Status CachingAllocator::Impl::OutOfMemory(const Place& place, SizeClass size_class, const ChargeRequest& request,
                                                 std::string_view why) {
  Record record;
  record.kind = RecordKind::kOutOfMemory;
  record.requested = request.requested;
  record.charged = size_class.charged();
  record.stream = request.stream.raw();
  record.owner = request.payer.owner;
  record.role = request.payer.role;
  record.site = request.site;
  ledger_owned.Note(record);
  return absl::ResourceExhaustedError(OutOfMemoryReport(place, request, why));
}

std::string CachingAllocator::Impl::OutOfMemoryReport(const Place& place, const ChargeRequest& request, std::string_view why) const {
  const LedgerCut cut(ledger);
  const Totals t = TotalsWith(cut.device);
  // Where the cached bytes are: handles of which some bytes are in use (stranded: no other pool can have them), handles of
  // private pools, and whole ones.
  Bytes largest, stranded, in_private_pools;
  for (const auto& pool : placement.pools()) {
    MutexLock lock(pool->mutex);
    Bytes cached;
    for (const Block* b = pool->first(); b != nullptr; b = b->right) {
      if (!b->cached()) continue;
      if (&pool->use() == &place.pools->use) largest = std::max(largest, b->size);
      cached += b->size;
    }
    const Bytes whole = mapping || pool->spare() == pool->mapped() ? pool->spare() : Bytes();
    if (mapping && pool->use().kept()) {
      in_private_pools += whole;
    }
    stranded += cached - whole;
  }
  std::string text = fmt::format("out of memory on device {} ({}): {} for {} [{}] could not be had: {}\n", device.value(), upstream.name(),
                                 Human(request.requested), OwnerName(request.payer.owner), RoleName(request.payer.role), why);
  text += Equation(t);
  text += fmt::format("  cap {}; largest cached block of this stream {}; cached in pieces under one handle {}\n", CapText(t.cap),
                      Human(largest), Human(stranded));
  if (!in_private_pools.is_zero()) {
    text += fmt::format("  kept for captured graphs, in private pools that were not released: {}\n", Human(in_private_pools));
  }
  text += "  top owners of what is in use:\n" + OwnerLines(cut.owners, options.report_owners);
  text += "  what would help: ";
  if (placement.shortage() == Shortage::kCap && request.charged + granularity < Bytes::Max() - t.reserved) {
    const Bytes need = (t.in_use + t.pending + stranded + in_private_pools + request.charged).RoundUpTo(granularity);
    text += fmt::format("a cap of {} or more (GPULEDGER_CAP), or freeing {}", Human(std::max(need, t.reserved + granularity)),
                        Human(request.charged));
  } else if (placement.shortage() == Shortage::kAddresses) {
    text += "a smaller request: no pool has so many addresses";
  } else {
    text += fmt::format("freeing {}, or memory that others hold on this device", Human(request.charged));
  }
  if (!t.pending.is_zero()) text += fmt::format("; {} is pending on other streams", Human(t.pending));
  if (!in_private_pools.is_zero()) text += "; releasing the private pools of graphs that are gone";
  return text;
}

std::string CachingAllocator::Report() const {
  MutexLock lock(impl_->growth);
  const LedgerCut cut(impl_->ledger);
  const Usage& usage = cut.device;
  const Totals t = impl_->TotalsWith(usage);
  std::string text = fmt::format("device {} ({})\n", impl_->device.value(), upstream().name());
  text += Equation(t);
  text += fmt::format("  in use = requested + rounding\n    {} = {} + {}\n", ToString(usage.in_use), ToString(usage.requested),
                      ToString(usage.in_use - usage.requested));
  text += fmt::format("  peak in use {}, peak reserved {}, cap {}\n", Human(usage.peak), Human(t.peak_reserved), CapText(t.cap));
  text += "  owners of what is in use:\n" + OwnerLines(cut.owners, impl_->options.report_owners);
  return text;
}

}  // namespace gpuledger
