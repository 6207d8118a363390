#include <cstdint>
#include <limits>
#include <span>

#include "gpuledger/gpuledger_quant.h"
#include "gpuledger/nf4.h"

namespace {

using gpuledger::FloatType;
using gpuledger::Nf4Blocks;
using gpuledger::Nf4PackedBytes;

// No object is larger, so the sizes computed from it neither wrap nor leave ptrdiff_t.
constexpr uint64_t kMostElements = std::numeric_limits<int64_t>::max() / sizeof(float);

int CheckArguments(const void* a, const void* b, const void* c, uint64_t n) {
  if (n > kMostElements) return GPULEDGER_QUANT_TOO_LARGE;
  if (n != 0 && (a == nullptr || b == nullptr || c == nullptr)) return GPULEDGER_QUANT_NULL_POINTER;
  return GPULEDGER_QUANT_OK;
}

bool ParseDtype(int dtype, FloatType* type) {
  switch (dtype) {
    case GPULEDGER_F32: *type = FloatType::kFloat32; return true;
    case GPULEDGER_F16: *type = FloatType::kFloat16; return true;
    case GPULEDGER_BF16: *type = FloatType::kBFloat16; return true;
    default: return false;
  }
}

}  // namespace

int gpuledger_quantize_nf4(int dtype, const void* src, uint64_t n, uint8_t* packed, float* absmax) noexcept {
  FloatType type;
  if (!ParseDtype(dtype, &type)) return GPULEDGER_QUANT_UNKNOWN_DTYPE;
  if (const int status = CheckArguments(src, packed, absmax, n); status != GPULEDGER_QUANT_OK) return status;
  gpuledger::QuantizeNf4(type, src, n, {packed, Nf4PackedBytes(n).count()}, {absmax, Nf4Blocks(n)});
  return GPULEDGER_QUANT_OK;
}

int gpuledger_dequantize_nf4(const uint8_t* packed, const float* absmax, uint64_t n, float* out) noexcept {
  if (const int status = CheckArguments(packed, absmax, out, n); status != GPULEDGER_QUANT_OK) return status;
  gpuledger::DequantizeNf4({packed, Nf4PackedBytes(n).count()}, {absmax, Nf4Blocks(n)}, n, {out, n});
  return GPULEDGER_QUANT_OK;
}
