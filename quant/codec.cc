#include "gpuledger/codec.h"

#include <cstddef>

#include "codec_reference.h"
#include "codec_simd.h"
#include "codec_tables.h"

namespace gpuledger {
namespace {

void CheckSizes(const FourBitFormat& format, uint64_t elements, size_t packed, size_t absmax) {
  if (!IsBlockSize(format.block)) Die("4-bit codec: the block size is no power of two from 32 to 4096");
  if (packed != PackedBytes(elements).count()) Die("4-bit codec: the packed span does not have PackedBytes");
  if (absmax != BlockCount(elements, format.block))
    Die("4-bit codec: the absmax span does not have BlockCount entries");
}

}  // namespace

const std::array<float, 16>& CodeTable(QuantType type) { return codec::TableOf(type); }

void Quantize4Bit(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source, uint64_t elements,
                  std::span<uint8_t> packed, std::span<float> absmax) {
  CheckSizes(format, elements, packed.size(), absmax.size());
  const uint64_t whole = elements / format.block;
  const uint64_t done = whole * format.block;
  if (whole != 0) codec::QuantizeWholeBlocks(format, dialect, from, source, whole, packed.data(), absmax.data());
  if (done == elements) return;
  const auto* rest = static_cast<const std::byte*>(source) + done * FloatSize(from).count();
  codec::ReferenceQuantize(format, dialect, from, rest, elements - done, packed.data() + done / 2,
                           absmax.data() + whole);
}

void Dequantize4Bit(const FourBitFormat& format, std::span<const uint8_t> packed, std::span<const float> absmax,
                    uint64_t elements, FloatType to, void* out) {
  CheckSizes(format, elements, packed.size(), absmax.size());
  const uint64_t whole = elements / format.block;
  const uint64_t done = whole * format.block;
  if (whole != 0) codec::DequantizeWholeBlocks(format, packed.data(), absmax.data(), whole, to, out);
  if (done == elements) return;
  auto* rest = static_cast<std::byte*>(out) + done * FloatSize(to).count();
  codec::ReferenceDequantize(format, packed.data() + done / 2, absmax.data() + whole, elements - done, to, rest);
}

}  // namespace gpuledger
