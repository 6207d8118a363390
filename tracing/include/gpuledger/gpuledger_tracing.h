/* gpuledger/gpuledger_tracing.h - recording, marks, settle and verdicts for C and other languages.
 *
 * The rules of gpuledger.h hold: every function returns a gpuledger_status, nothing throws, gpuledger_last_error() has the
 * sentence. Texts are UTF-8, 0-terminated. Thread-safe, but for a gpuledger_settle, which belongs to one thread. */
#ifndef GPULEDGER_GPULEDGER_TRACING_H_
#define GPULEDGER_GPULEDGER_TRACING_H_

#include "gpuledger/gpuledger.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Starts the recorder of the process. `path`: %p is the process id. `limit` 0: the default. FAILED_PRECONDITION if it runs. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_trace_start(const char* path, uint64_t limit) GPULEDGER_NOEXCEPT;
/* The file that is being written, or "". Valid until the process ends. */
GPULEDGER_C_EXPORT const char* gpuledger_trace_path(void) GPULEDGER_NOEXCEPT;
/* Without a recorder a mark does nothing. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_mark(const char* text) GPULEDGER_NOEXCEPT;
/* Whether stacks are taken: native, Python. In a Python process, call it with the GIL held (PyDLL). */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_set_stacks(int native, int python) GPULEDGER_NOEXCEPT;
/* The call stack of this thread, as an id: native frames, and Python's in a thread of Python's. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_take_site(uint32_t* site) GPULEDGER_NOEXCEPT;
/* Its frames, innermost first, a line each, cut to `size`; `needed` is its length with the 0. Reads the modules' files: slow.
 * NOT_FOUND if `site` is no site of this process. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_site_text(uint32_t site, char* buffer, size_t size, size_t* needed) GPULEDGER_NOEXCEPT;

/* In the order of FactKind (trace.h). An int, so that any number may be passed, and be refused. */
typedef int gpuledger_fact_kind;
enum {
  GPULEDGER_FACT_HOLDER = 0,
  GPULEDGER_FACT_TRACEBACK = 1,
  GPULEDGER_FACT_ALIASES = 2,
  GPULEDGER_FACT_LARGEST_VIEW = 3,
  GPULEDGER_FACT_UNREACHABLE = 4,
  GPULEDGER_FACT_TENSOR = 5
};
/* Something found out about the block in use that holds `address`, of any allocator of the process: remembered until the
 * block is freed, written to the trace, part of later verdicts. `text` may be NULL. NOT_FOUND if no such block is in use. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_fact(uint64_t address, gpuledger_fact_kind kind, uint64_t value, const char* text) GPULEDGER_NOEXCEPT;

/* A verdict in steps (trace.h: SettleStep), over all allocators of the process; the caller does between them what they stand
 * for. begin -> complete -> (gc) step collected -> (workspaces) step released -> facts -> end -> report. */
typedef struct gpuledger_settle_state gpuledger_settle_state;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_begin(gpuledger_settle_state** settle) GPULEDGER_NOEXCEPT;
/* Waits for the streams of pending blocks, completes them, and is the step COMPLETED. Synchronises the device. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_complete(gpuledger_settle_state* settle) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_collected(gpuledger_settle_state* settle) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_released(gpuledger_settle_state* settle) GPULEDGER_NOEXCEPT;
/* Looks for blocks whose address is nowhere in host memory (process.h: FindLost): the fact UNREACHABLE of each. Reads all of
 * that memory. For programs that hold blocks by pointers; Python's storages are reachable as long as they live. INTERNAL
 * where the process may not read its own memory. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_find_lost(gpuledger_settle_state* settle) GPULEDGER_NOEXCEPT;
/* Addresses and sizes of the blocks still live, for whoever looks for holders: up to `room` of them; `count` is how many. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_blocks(const gpuledger_settle_state* settle, uint64_t* addresses, uint64_t* sizes, uint64_t room, uint64_t* count) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_end(gpuledger_settle_state* settle) GPULEDGER_NOEXCEPT;
/* The report, as JSON (tracing/report.schema.json) or text, cut to `size`; `needed` is its length with the 0. `suppressions`:
 * rules, one a line, or NULL. `leaks`: whether an error is left that no rule suppresses. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle_report(gpuledger_settle_state* settle, const char* suppressions, int json, char* buffer, size_t size, size_t* needed, int* leaks) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT void gpuledger_settle_free(gpuledger_settle_state* settle) GPULEDGER_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif /* GPULEDGER_GPULEDGER_TRACING_H_ */
