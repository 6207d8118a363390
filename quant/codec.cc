#include "gpuledger/codec.h"

#include "codec_reference.h"
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
  codec::ReferenceQuantize(format, dialect, from, source, elements, packed.data(), absmax.data());
}

void Dequantize4Bit(const FourBitFormat& format, std::span<const uint8_t> packed, std::span<const float> absmax,
                    uint64_t elements, FloatType to, void* out) {
  CheckSizes(format, elements, packed.size(), absmax.size());
  codec::ReferenceDequantize(format, packed.data(), absmax.data(), elements, to, out);
}

}  // namespace gpuledger
