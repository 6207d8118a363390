#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "gpuledger/codec.h"
#include "gpuledger/gpuledger_quant.h"

namespace {

using gpuledger::BlockCount;
using gpuledger::Dialect;
using gpuledger::FloatType;
using gpuledger::FourBitFormat;
using gpuledger::kNestedBlock;
using gpuledger::PackedBytes;
using gpuledger::QuantType;

// No object is larger, so the sizes computed from it neither wrap nor leave ptrdiff_t.
constexpr uint64_t kMostElements = std::numeric_limits<int64_t>::max() / sizeof(float);

int CheckArguments(std::initializer_list<const void*> pointers, uint64_t n) {
  if (n > kMostElements) return GPULEDGER_QUANT_TOO_LARGE;
  const bool null = std::find(pointers.begin(), pointers.end(), nullptr) != pointers.end();
  return n != 0 && null ? GPULEDGER_QUANT_NULL_POINTER : GPULEDGER_QUANT_OK;
}

int ParseDtype(int dtype, FloatType* type) {
  switch (dtype) {
    case GPULEDGER_F32:
      *type = FloatType::kFloat32;
      return GPULEDGER_QUANT_OK;
    case GPULEDGER_F16:
      *type = FloatType::kFloat16;
      return GPULEDGER_QUANT_OK;
    case GPULEDGER_BF16:
      *type = FloatType::kBFloat16;
      return GPULEDGER_QUANT_OK;
    default:
      return GPULEDGER_QUANT_UNKNOWN_DTYPE;
  }
}

int ParseType(int value, QuantType* type) {
  switch (value) {
    case GPULEDGER_NF4:
      *type = QuantType::kNf4;
      return GPULEDGER_QUANT_OK;
    case GPULEDGER_FP4:
      *type = QuantType::kFp4;
      return GPULEDGER_QUANT_OK;
    default:
      return GPULEDGER_QUANT_UNKNOWN_TYPE;
  }
}

int ParseFormat(int type, uint32_t block, FourBitFormat* format) {
  if (!gpuledger::IsBlockSize(block)) return GPULEDGER_QUANT_BLOCK_SIZE;
  format->block = block;
  return ParseType(type, &format->type);
}

int ParseDialect(int value, Dialect* dialect) {
  switch (value) {
    case GPULEDGER_DIALECT_CPU:
      *dialect = Dialect::kCpu;
      return GPULEDGER_QUANT_OK;
    case GPULEDGER_DIALECT_CUDA:
      *dialect = Dialect::kCuda;
      return GPULEDGER_QUANT_OK;
    default:
      return GPULEDGER_QUANT_UNKNOWN_DIALECT;
  }
}

// The first status that is not ok.
int FirstOf(std::initializer_list<int> statuses) {
  for (const int status : statuses) {
    if (status != GPULEDGER_QUANT_OK) return status;
  }
  return GPULEDGER_QUANT_OK;
}

}  // namespace

int gpuledger_quantize_4bit(int type, uint32_t block, int dialect, int dtype, const void* src, uint64_t n,
                            uint8_t* packed, float* absmax) noexcept {
  FourBitFormat format;
  Dialect parsed_dialect = Dialect::kCpu;
  FloatType from = FloatType::kFloat32;
  const int status = FirstOf({ParseFormat(type, block, &format), ParseDialect(dialect, &parsed_dialect),
                              ParseDtype(dtype, &from), CheckArguments({src, packed, absmax}, n)});
  if (status != GPULEDGER_QUANT_OK) return status;
  gpuledger::Quantize4Bit(format, parsed_dialect, from, src, n, {packed, PackedBytes(n).count()},
                          {absmax, BlockCount(n, block)});
  return GPULEDGER_QUANT_OK;
}

int gpuledger_dequantize_4bit(int type, uint32_t block, const uint8_t* packed, const float* absmax, uint64_t n,
                              int dtype, void* out) noexcept {
  FourBitFormat format;
  FloatType to = FloatType::kFloat32;
  const int status =
      FirstOf({ParseFormat(type, block, &format), ParseDtype(dtype, &to), CheckArguments({packed, absmax, out}, n)});
  if (status != GPULEDGER_QUANT_OK) return status;
  gpuledger::Dequantize4Bit(format, {packed, PackedBytes(n).count()}, {absmax, BlockCount(n, block)}, n, to, out);
  return GPULEDGER_QUANT_OK;
}

int gpuledger_absmax_offset(const float* absmax, uint64_t n, float* offset) noexcept {
  if (offset == nullptr) return GPULEDGER_QUANT_NULL_POINTER;
  if (const int status = CheckArguments({absmax}, n); status != GPULEDGER_QUANT_OK) return status;
  *offset = gpuledger::AbsmaxOffset({absmax, n});
  return GPULEDGER_QUANT_OK;
}

int gpuledger_quantize_absmax(int dialect, const float* absmax, uint64_t n, float offset, uint8_t* codes,
                              float* nested_absmax) noexcept {
  Dialect parsed = Dialect::kCpu;
  const int status = FirstOf({ParseDialect(dialect, &parsed), CheckArguments({absmax, codes, nested_absmax}, n)});
  if (status != GPULEDGER_QUANT_OK) return status;
  gpuledger::QuantizeAbsmax(parsed, {absmax, n}, offset, {codes, n}, {nested_absmax, BlockCount(n, kNestedBlock)});
  return GPULEDGER_QUANT_OK;
}

int gpuledger_restore_absmax(const uint8_t* codes, const float* nested_absmax, uint64_t n, float offset,
                             float* absmax) noexcept {
  if (const int status = CheckArguments({codes, nested_absmax, absmax}, n); status != GPULEDGER_QUANT_OK) return status;
  gpuledger::RestoreAbsmax({codes, n}, {nested_absmax, BlockCount(n, kNestedBlock)}, offset, {absmax, n});
  return GPULEDGER_QUANT_OK;
}

int gpuledger_code_table(int type, float* table) noexcept {
  QuantType parsed = QuantType::kNf4;
  const int status = FirstOf({ParseType(type, &parsed), CheckArguments({table}, 16)});
  if (status != GPULEDGER_QUANT_OK) return status;
  std::ranges::copy(gpuledger::CodeTable(parsed), table);
  return GPULEDGER_QUANT_OK;
}

int gpuledger_nested_table(float* table) noexcept {
  if (table == nullptr) return GPULEDGER_QUANT_NULL_POINTER;
  std::ranges::copy(gpuledger::NestedTable(), table);
  return GPULEDGER_QUANT_OK;
}
