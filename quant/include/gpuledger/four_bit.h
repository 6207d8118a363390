// gpuledger/four_bit.h - the 4-bit formats: what a quantized weight consists of, byte for byte.
//
// A weight of n elements is flattened row-major and cut into blocks of `block` elements (blocks cross rows). Each block
// has a scale, absmax; each element is a code, the index of one of 16 table values. Elements 2i and 2i+1 share a byte,
// 2i in the high nibble. With double quantization the scales are themselves codes of 8 bits, relative to their mean
// (`offset`), in nested blocks of 256 scales, and each nested block has a float32 scale of its own.
// Source: bitsandbytes' documentation and wheel (0.50.2). Read next: codec.h.
//
// Everything here is a value: thread-safe, no allocation, no device call.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include "gpuledger/types.h"

namespace gpuledger {

enum class QuantType : uint8_t { kNf4, kFp4 };
GPULEDGER_EXPORT std::string_view QuantTypeName(QuantType type);  // "nf4", "fp4"
// False, and `type` untouched, for any other name.
GPULEDGER_EXPORT bool ParseQuantType(std::string_view name, QuantType* type);

// Element types that can be quantized, as safetensors names them: F32, F16, BF16.
enum class FloatType : uint8_t { kFloat32, kFloat16, kBFloat16 };
constexpr Bytes FloatSize(FloatType type) { return Bytes(type == FloatType::kFloat32 ? 4u : 2u); }

struct FourBitFormat {
  QuantType type = QuantType::kNf4;
  uint32_t block = 64;  // elements that share a scale: a power of two from 32 to 4096
  bool double_quant = false;

  friend bool operator==(const FourBitFormat&, const FourBitFormat&) = default;
};
// "nf4", "fp4, blocks of 128", "nf4, double-quantized".
GPULEDGER_EXPORT std::string ToString(const FourBitFormat& format);

inline constexpr uint64_t kSmallestBlock = 32;
inline constexpr uint64_t kLargestBlock = 4096;
constexpr bool IsBlockSize(uint64_t block) {
  return std::has_single_bit(block) && block >= kSmallestBlock && block <= kLargestBlock;
}

inline constexpr uint64_t kNestedBlock = 256;

constexpr Bytes PackedBytes(uint64_t elements) { return Bytes(elements / 2 + elements % 2); }
constexpr uint64_t BlockCount(uint64_t elements, uint64_t block) {
  return elements / block + (elements % block != 0 ? 1 : 0);
}

// Where the parts of a quantized weight are in its one block of memory. Codes are at 0, padding to 4 bytes behind them.
//
//   plain     codes | absmax F32[blocks] | table F32[16]
//   double    codes | nested absmax F32[nested blocks] | offset F32 | table F32[16] | nested table F32[256] |
//             absmax U8[blocks]
struct FourBitLayout {
  FourBitFormat format;
  uint64_t elements;
  uint64_t blocks;
  uint64_t nested_blocks;   // 0 without double quantization, as are the next three
  Bytes nested_absmax_at;
  Bytes offset_at;
  Bytes nested_table_at;
  Bytes table_at;
  Bytes absmax_at;
  Bytes size;

  static constexpr FourBitLayout Of(const FourBitFormat& format, uint64_t elements) {
    constexpr Bytes kFloat = Bytes(sizeof(float));
    FourBitLayout at{format, elements, BlockCount(elements, format.block), 0, {}, {}, {}, {}, {}, {}};
    const Bytes scales_at = PackedBytes(elements).RoundUpTo(kFloat);
    if (!format.double_quant) {
      at.absmax_at = scales_at;
      at.table_at = at.absmax_at + kFloat * at.blocks;
      at.size = at.table_at + kFloat * 16u;
      return at;
    }
    at.nested_blocks = BlockCount(at.blocks, kNestedBlock);
    at.nested_absmax_at = scales_at;
    at.offset_at = at.nested_absmax_at + kFloat * at.nested_blocks;
    at.table_at = at.offset_at + kFloat;
    at.nested_table_at = at.table_at + kFloat * 16u;
    at.absmax_at = at.nested_table_at + kFloat * 256u;
    at.size = at.absmax_at + Bytes(at.blocks);
    return at;
  }
};

}  // namespace gpuledger
