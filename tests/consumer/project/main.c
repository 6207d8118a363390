/* The same from C: an allocator over the fake upstream, one owner, and what the ledger says of it. */
#include <stdio.h>
#include <string.h>

#include <gpuledger/gpuledger.h>
#include <gpuledger/gpuledger_quant.h>

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, gpuledger_last_error());
  return 1;
}

static gpuledger_role role_named(const char* name) {
  for (gpuledger_role role = 0; gpuledger_role_name(role) != NULL; ++role) {
    if (strcmp(gpuledger_role_name(role), name) == 0) return role;
  }
  return -1;
}

int main(void) {
  gpuledger_allocator* allocator = NULL;
  gpuledger_usage usage;
  uint64_t block = 0, scope = 0;
  const float weights[2] = {-1.0f, 1.0f};
  uint8_t packed = 0;
  float absmax = 0;

  if (gpuledger_create("fake", 0, &allocator) != GPULEDGER_OK) return failed("create");
  if (gpuledger_open_scope("consumer", role_named("quantized"), 0, &scope) != GPULEDGER_OK) return failed("open_scope");
  if (gpuledger_allocate(allocator, 1000, NULL, &block) != GPULEDGER_OK) return failed("allocate");
  if (gpuledger_close_scope(scope) != GPULEDGER_OK) return failed("close_scope");
  if (gpuledger_get_usage(allocator, "consumer", -1, &usage) != GPULEDGER_OK) return failed("get_usage");
  if (usage.requested != 1000 || usage.in_use != 1024 || usage.count != 1) return 2;
  if (gpuledger_free(allocator, block) != GPULEDGER_OK) return failed("free");
  if (gpuledger_destroy(allocator) != GPULEDGER_OK) return failed("destroy");

  if (gpuledger_quantize_4bit(GPULEDGER_NF4, 64, GPULEDGER_DIALECT_CPU, GPULEDGER_F32, weights, 2, &packed, &absmax) !=
      GPULEDGER_QUANT_OK) {
    return 3;
  }
  if (packed != 0x0F || absmax != 1.0f) return 4;
  printf("C consumer: gpuledger %s, 1000 B charged as 1024 B\n", gpuledger_version());
  return 0;
}
