/* gpuledger/gpuledger_quant.h - the C interface of quant: for bindings that cannot take C++ (Python's ctypes).
 *
 * Functions return GPULEDGER_QUANT_OK or what was wrong with the arguments; none throws, keeps a pointer or touches a
 * device. Thread-safe. Sizes of a weight with n elements: packed (n + 1) / 2 bytes, absmax (n + 63) / 64 floats. */
#ifndef GPULEDGER_GPULEDGER_QUANT_H_
#define GPULEDGER_GPULEDGER_QUANT_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define GPULEDGER_QUANT_NOEXCEPT noexcept
#else
#define GPULEDGER_QUANT_NOEXCEPT
#endif
#define GPULEDGER_QUANT_EXPORT __attribute__((visibility("default")))

enum {
  GPULEDGER_QUANT_OK = 0,
  GPULEDGER_QUANT_UNKNOWN_DTYPE = 1, /* not one of GPULEDGER_F32, GPULEDGER_F16, GPULEDGER_BF16 */
  GPULEDGER_QUANT_NULL_POINTER = 2,  /* a pointer is null although n is not 0 */
  GPULEDGER_QUANT_TOO_LARGE = 3,     /* n elements have more bytes than memory can */
};

enum { GPULEDGER_F32 = 0, GPULEDGER_F16 = 1, GPULEDGER_BF16 = 2 };

/* Quantizes the n elements of type `dtype` at `src`; see nf4.h. */
GPULEDGER_QUANT_EXPORT int gpuledger_quantize_nf4(int dtype, const void* src, uint64_t n, uint8_t* packed,
                                                  float* absmax) GPULEDGER_QUANT_NOEXCEPT;

/* The n values as float32 into `out`. */
GPULEDGER_QUANT_EXPORT int gpuledger_dequantize_nf4(const uint8_t* packed, const float* absmax, uint64_t n,
                                                    float* out) GPULEDGER_QUANT_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* GPULEDGER_GPULEDGER_QUANT_H_ */
