#include <atomic>

#include "gpuledger/owner.h"
#include "gpuledger/record.h"

namespace gpuledger {
namespace {

constinit std::atomic<RecordSink*> default_sink{nullptr};
constinit std::atomic<SiteSource> site_source{nullptr};

}  // namespace

RecordSink* DefaultRecordSink() noexcept { return default_sink.load(std::memory_order_acquire); }
void SetDefaultRecordSink(RecordSink* sink) noexcept { default_sink.store(sink, std::memory_order_release); }

void SetSiteSource(SiteSource source) noexcept { site_source.store(source, std::memory_order_release); }
SiteId CurrentSite() noexcept {
  const SiteSource source = site_source.load(std::memory_order_acquire);
  return source == nullptr ? kNoSite : source();
}

}  // namespace gpuledger
