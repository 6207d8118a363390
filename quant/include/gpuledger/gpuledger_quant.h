/* gpuledger/gpuledger_quant.h - the C interface of quant: for bindings that cannot take C++ (Python's ctypes).
 *
 * The functions of codec.h, where the contracts are. Each returns GPULEDGER_QUANT_OK or what was wrong with the
 * arguments; none throws, keeps a pointer or touches a device. Thread-safe.
 *
 * Sizes of a weight with n elements in blocks of b: packed (n + 1) / 2 bytes, absmax (n + b - 1) / b entries; of n
 * double-quantized scales: (n + 255) / 256 nested ones. */
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
  GPULEDGER_QUANT_UNKNOWN_TYPE = 4,  /* not one of GPULEDGER_NF4, GPULEDGER_FP4 */
  GPULEDGER_QUANT_BLOCK_SIZE = 5,    /* not a power of two from 32 to 4096 */
  GPULEDGER_QUANT_UNKNOWN_DIALECT = 6,
};

enum { GPULEDGER_F32 = 0, GPULEDGER_F16 = 1, GPULEDGER_BF16 = 2 };
enum { GPULEDGER_NF4 = 0, GPULEDGER_FP4 = 1 };
enum { GPULEDGER_DIALECT_CPU = 0, GPULEDGER_DIALECT_CUDA = 1 };

/* Quantizes the n elements of type `dtype` at `src`. */
GPULEDGER_QUANT_EXPORT int gpuledger_quantize_4bit(int type, uint32_t block, int dialect, int dtype, const void* src,
                                                   uint64_t n, uint8_t* packed, float* absmax) GPULEDGER_QUANT_NOEXCEPT;

/* The n values as elements of type `dtype` into `out`. */
GPULEDGER_QUANT_EXPORT int gpuledger_dequantize_4bit(int type, uint32_t block, const uint8_t* packed,
                                                     const float* absmax, uint64_t n, int dtype,
                                                     void* out) GPULEDGER_QUANT_NOEXCEPT;

/* Double quantization of the n scales at `absmax`: their mean, then their codes relative to a mean. */
GPULEDGER_QUANT_EXPORT int gpuledger_absmax_offset(const float* absmax, uint64_t n,
                                                   float* offset) GPULEDGER_QUANT_NOEXCEPT;
GPULEDGER_QUANT_EXPORT int gpuledger_quantize_absmax(int dialect, const float* absmax, uint64_t n, float offset,
                                                     uint8_t* codes, float* nested_absmax) GPULEDGER_QUANT_NOEXCEPT;
GPULEDGER_QUANT_EXPORT int gpuledger_restore_absmax(const uint8_t* codes, const float* nested_absmax, uint64_t n,
                                                    float offset, float* absmax) GPULEDGER_QUANT_NOEXCEPT;

/* What bitsandbytes stores as quant_map (16 values) and nested_quant_map (256 values). */
GPULEDGER_QUANT_EXPORT int gpuledger_code_table(int type, float* table) GPULEDGER_QUANT_NOEXCEPT;
GPULEDGER_QUANT_EXPORT int gpuledger_nested_table(float* table) GPULEDGER_QUANT_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* GPULEDGER_GPULEDGER_QUANT_H_ */
