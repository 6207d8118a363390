/* recorded_program WORD...: does what the words say, one after the other, for the tests of `gpuledger run` and `report`.
 *
 *   load    two weights are read and converted, and their sources kept: their lineages are closed
 *   free    what `load` kept is freed
 *   grow    eight marks, and a cache that is larger at each
 *   settle  a verdict, with a holder of all that is left
 *   fork    a child does `load` too, and ends
 *   wait    says so, and waits to be killed
 *   abort   ends the process by a signal
 *   exit N  ends it with that code
 * Without `load` nothing is allocated at all. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpuledger/gpuledger_tracing.h"

enum { kSource = 0, kCache = 7 }; /* by gpuledger_role_name */

static gpuledger_allocator* allocator;
static uint64_t sources[2];

static void Must(gpuledger_status status) {
  if (status == GPULEDGER_OK) return;
  fprintf(stderr, "%s\n", gpuledger_last_error());
  exit(9);
}

static uint64_t Allocate(const char* owner, gpuledger_role role, uint64_t bytes) {
  uint64_t address = 0, scope = 0;
  if (allocator == NULL) Must(gpuledger_create("host-anonymous", 0, &allocator));
  Must(gpuledger_open_scope(owner, role, 0, &scope));
  Must(gpuledger_allocate(allocator, bytes, NULL, &address));
  Must(gpuledger_close_scope(scope));
  return address;
}

static void Load(void) {
  for (int layer = 0; layer < 2; ++layer) {
    char owner[64];
    snprintf(owner, sizeof owner, "load/layers.%d.up.weight", layer);
    sources[layer] = Allocate(owner, kSource, 1 << 20);
    Must(gpuledger_open_lineage(allocator, owner));
    Must(gpuledger_close_lineage(allocator, owner));
  }
}

static void Settle(void) {
  gpuledger_settle_state* settle = NULL;
  Must(gpuledger_settle_begin(&settle));
  Must(gpuledger_settle_complete(settle));
  Must(gpuledger_settle_collected(settle));
  Must(gpuledger_settle_released(settle));
  for (int i = 0; i < 2; ++i) {
    if (sources[i] != 0) Must(gpuledger_fact(sources[i], GPULEDGER_FACT_HOLDER, 0, "static sources[] of recorded_program.c"));
  }
  Must(gpuledger_settle_end(settle));
  gpuledger_settle_free(settle);
}

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const char* const word = argv[i];
    if (strcmp(word, "load") == 0) Load();
    if (strcmp(word, "free") == 0) {
      for (int k = 0; k < 2; ++k) Must(gpuledger_free(allocator, sources[k])), sources[k] = 0;
    }
    if (strcmp(word, "grow") == 0) {
      for (int step = 0; step < 8; ++step) {
        Allocate("serve/cache", kCache, 4096);
        Must(gpuledger_mark("step"));
      }
    }
    if (strcmp(word, "settle") == 0) Settle();
    if (strcmp(word, "fork") == 0) {
      const pid_t child = fork();
      if (child == 0) {
        Load();
        exit(0);
      }
      waitpid(child, NULL, 0);
    }
    if (strcmp(word, "wait") == 0) {
      printf("waiting\n");
      fflush(stdout);
      for (;;) pause();
    }
    if (strcmp(word, "abort") == 0) abort();
    if (strcmp(word, "exit") == 0) exit(atoi(argv[++i]));
  }
  return 0;
}
