#include <atomic>

#include "gpuledger/record.h"

namespace gpuledger {
namespace {

constinit std::atomic<RecordSink*> default_sink{nullptr};

}  // namespace

RecordSink* DefaultRecordSink() noexcept { return default_sink.load(std::memory_order_acquire); }
void SetDefaultRecordSink(RecordSink* sink) noexcept { default_sink.store(sink, std::memory_order_release); }

}  // namespace gpuledger
