#include "gpuledger/four_bit.h"

#include <fmt/format.h>

namespace gpuledger {

std::string_view QuantTypeName(QuantType type) { return type == QuantType::kNf4 ? "nf4" : "fp4"; }

bool ParseQuantType(std::string_view name, QuantType* type) {
  for (const QuantType known : {QuantType::kNf4, QuantType::kFp4}) {
    if (name != QuantTypeName(known)) continue;
    *type = known;
    return true;
  }
  return false;
}

std::string ToString(const FourBitFormat& format) {
  std::string text(QuantTypeName(format.type));
  if (format.block != FourBitFormat{}.block) text += fmt::format(", blocks of {}", format.block);
  if (format.double_quant) text += ", double-quantized";
  return text;
}

}  // namespace gpuledger
