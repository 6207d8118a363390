/* The C ABI, used from C: every function once as it should be, and once as it should not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpuledger/gpuledger.h"

static int failures = 0;

static void expect(int holds, const char* what, int line) {
  if (holds) return;
  fprintf(stderr, "c_api_test.c:%d: %s (last error: %s)\n", line, what, gpuledger_last_error());
  ++failures;
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

/* Runs when this thread's own objects are gone. */
static void at_exit(void) {
  gpuledger_allocator* a = NULL;
  gpuledger_create("vulkan", 0, &a);
  if (gpuledger_last_error() == NULL) abort();
  uint64_t token = 0;
  if (gpuledger_open_scope("c/late", 0, 0, &token) != GPULEDGER_FAILED_PRECONDITION) abort();
}

int main(void) {
  gpuledger_allocator* a = NULL;
  gpuledger_usage usage;
  gpuledger_totals totals;
  gpuledger_payer payer, nobody = {UINT32_MAX, 0, 0};
  gpuledger_lineage lineage;
  gpuledger_device device;
  gpuledger_owner_usage owners;
  uint64_t block = 0, bytes = 0, count = 0, outer = 0, inner = 0;
  const char* const path = "c/entered";
  uint64_t places[1] = {0}, sizes[1] = {0};
  char text[4096];
  size_t needed = 0;

  atexit(at_exit);

  EXPECT(gpuledger_create("vulkan", 0, &a) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(strstr(gpuledger_last_error(), "no upstream is called 'vulkan'; there are host-anonymous") != NULL);
  EXPECT(gpuledger_create("host-anonymous", 8u << 20, &a) == GPULEDGER_OK);
  EXPECT(gpuledger_allocate(NULL, 1, NULL, &block) == GPULEDGER_INVALID_ARGUMENT);

  EXPECT(strcmp(gpuledger_role_name(0), "source") == 0 && gpuledger_role_name(99) == NULL);
  EXPECT(gpuledger_close_scope(77) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_open_scope("c/weight", 99, 0, &outer) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_open_scope("c", 0, 1, &outer) == GPULEDGER_OK && gpuledger_open_scope("weight", 0, 0, &inner) == GPULEDGER_OK);
  EXPECT(gpuledger_current_payer(&payer) == GPULEDGER_OK && payer.role == 0 && payer.scope != 0);
  EXPECT(gpuledger_open_lineage(a, "c/weight") == GPULEDGER_OK);
  EXPECT(gpuledger_allocate(a, 1000, NULL, &block) == GPULEDGER_OK && block != 0);
  memset((void*)(uintptr_t)block, 7, 1000);
  EXPECT(gpuledger_close_scope(outer) == GPULEDGER_INVALID_ARGUMENT);  /* too early: it ends with the inner one */
  EXPECT(strstr(gpuledger_last_error(), "before one that began later") != NULL);
  EXPECT(gpuledger_close_scope(inner) == GPULEDGER_OK && gpuledger_close_scope(outer) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_adopt_payer(&nobody, &outer) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_enter_scope(path, 0, 0) == GPULEDGER_OK && gpuledger_enter_scope(path, 0, 0) == GPULEDGER_OK);
  EXPECT(gpuledger_leave_scope("c/entered elsewhere") == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_leave_scope(path) == GPULEDGER_OK && gpuledger_leave_scope(path) == GPULEDGER_OK);
  EXPECT(gpuledger_leave_scope(path) == GPULEDGER_INVALID_ARGUMENT && gpuledger_leave_scope(NULL) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_enter_scope(NULL, 0, 0) == GPULEDGER_INVALID_ARGUMENT && gpuledger_enter_scope(path, 99, 0) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_adopt_payer(&payer, &outer) == GPULEDGER_OK && gpuledger_close_scope(outer) == GPULEDGER_OK);
  EXPECT(gpuledger_current_payer(&payer) == GPULEDGER_OK && payer.owner == 0 && payer.scope == 0);

  EXPECT(gpuledger_get_usage(a, "c/weight", 0, &usage) == GPULEDGER_OK && usage.in_use == 1024 && usage.requested == 1000);
  EXPECT(gpuledger_get_usage(a, NULL, -1, &usage) == GPULEDGER_OK && usage.count == 1);
  EXPECT(gpuledger_residual(a, "c/weight", &bytes, &count) == GPULEDGER_FAILED_PRECONDITION);
  EXPECT(gpuledger_close_lineage(a, "c/weight") == GPULEDGER_OK);
  EXPECT(gpuledger_residual(a, "c/weight", &bytes, &count) == GPULEDGER_OK && bytes == 1024 && count == 1);
  EXPECT(gpuledger_process_residual("c/*", &bytes, &count) == GPULEDGER_OK && bytes == 1024 && count == 1);
  EXPECT(gpuledger_process_residual("d/*", &bytes, &count) == GPULEDGER_FAILED_PRECONDITION);
  EXPECT(gpuledger_process_lineage("c/weight", &lineage) == GPULEDGER_OK && lineage.state == GPULEDGER_LINEAGE_CLOSED && lineage.source.in_use == 1024);
  EXPECT(gpuledger_process_open_lineage("c/weight") == GPULEDGER_OK && gpuledger_process_residual("c/*", &bytes, NULL) == GPULEDGER_FAILED_PRECONDITION);
  EXPECT(gpuledger_process_close_lineage("c/weight") == GPULEDGER_OK);
  EXPECT(gpuledger_process_transfer(block + 1, "c/other", 2) == GPULEDGER_NOT_FOUND);
  EXPECT(gpuledger_process_transfer(block, "c/weight", 1) == GPULEDGER_OK);
  EXPECT(gpuledger_process_usage("c/weight", 1, &usage) == GPULEDGER_OK && usage.in_use == 1024);
  EXPECT(gpuledger_process_usage(NULL, -1, &usage) == GPULEDGER_OK && usage.count == 1);
  EXPECT(gpuledger_process_blocks("c/weight", 1, places, sizes, 1, &count) == GPULEDGER_OK && count == 1 && places[0] == block && sizes[0] == 1000);
  EXPECT(gpuledger_process_blocks("c/weight", 0, NULL, NULL, 0, &count) == GPULEDGER_OK && count == 0);
  EXPECT(gpuledger_process_blocks("c/weight", -1, NULL, NULL, 1, &count) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_process_devices(NULL, 0, &count) == GPULEDGER_OK && count == 1);
  EXPECT(gpuledger_process_devices(&device, 1, &count) == GPULEDGER_OK && strcmp(device.upstream, "host-anonymous") == 0 && device.number == 0);
  EXPECT(device.in_use == 1024 && device.reserved == device.in_use + device.pending + device.cached && device.total >= device.free && device.external == 0);
  EXPECT(gpuledger_process_owners("host-anonymous", 0, &owners, 1, &count) == GPULEDGER_OK && count == 1);
  EXPECT(strcmp(owners.owner, "c/weight") == 0 && owners.role == 1 && owners.usage.in_use == 1024);
  EXPECT(gpuledger_process_owners("host-anonymous", 1, NULL, 0, &count) == GPULEDGER_NOT_FOUND);
  EXPECT(gpuledger_process_owners(NULL, 0, NULL, 0, &count) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_process_devices(NULL, 1, &count) == GPULEDGER_INVALID_ARGUMENT);
  EXPECT(gpuledger_process_reset_peak() == GPULEDGER_OK);
  EXPECT(gpuledger_transfer(a, block, "c/other", 2) == GPULEDGER_OK);
  EXPECT(gpuledger_residual(a, "c/weight", &bytes, NULL) == GPULEDGER_OK && bytes == 0);
  EXPECT(gpuledger_transfer(a, 12345, "c/other", 2) == GPULEDGER_NOT_FOUND);
  EXPECT(gpuledger_record_stream(a, block, NULL) == GPULEDGER_OK);
  EXPECT(gpuledger_allocate(a, 64u << 20, NULL, &bytes) == GPULEDGER_OUT_OF_MEMORY);
  EXPECT(strstr(gpuledger_last_error(), "c/other [quantized]") != NULL);

  EXPECT(gpuledger_report(a, text, sizeof text, &needed) == GPULEDGER_OK && needed == strlen(text) + 1);
  EXPECT(gpuledger_report(a, text, 10, &needed) == GPULEDGER_OK && strlen(text) == 9);
  EXPECT(gpuledger_check(a) == GPULEDGER_OK);
  EXPECT(gpuledger_destroy(a) == GPULEDGER_FAILED_PRECONDITION);
  EXPECT(gpuledger_free(a, block) == GPULEDGER_OK);
  EXPECT(gpuledger_settle(a) == GPULEDGER_OK);
  EXPECT(gpuledger_release_cached(a, &bytes) == GPULEDGER_OK && bytes == 2u << 20);
  EXPECT(gpuledger_get_totals(a, &totals) == GPULEDGER_OK && totals.reserved == 0 && totals.cap == 8u << 20);
  EXPECT(gpuledger_destroy(a) == GPULEDGER_OK);
  EXPECT(gpuledger_destroy(NULL) == GPULEDGER_OK);
  EXPECT(gpuledger_process_open_lineage("c/weight") == GPULEDGER_FAILED_PRECONDITION);
  return failures == 0 ? 0 : 1;
}
