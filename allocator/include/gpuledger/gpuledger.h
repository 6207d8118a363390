/* gpuledger/gpuledger.h - the C ABI of the core: an allocator, its ledger, owner scopes.
 *
 * Every function but the readers of text returns a gpuledger_status; on any but GPULEDGER_OK, gpuledger_last_error() of
 * the same thread says what happened, in a sentence. Nothing throws. Thread-safe, but for destroying an allocator that
 * others still use. Sizes are bytes. A NULL out-parameter or handle is GPULEDGER_INVALID_ARGUMENT, unless NULL is given
 * a meaning below. No call but gpuledger_settle, gpuledger_release_cached, gpuledger_destroy and a gpuledger_allocate
 * that is short of memory (or gives some back: GPULEDGER_RELEASE_AFTER) synchronises the device. */
#ifndef GPULEDGER_GPULEDGER_H_
#define GPULEDGER_GPULEDGER_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GPULEDGER_C_EXPORT __attribute__((visibility("default")))
#else
#define GPULEDGER_C_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#define GPULEDGER_NOEXCEPT noexcept
#else
#define GPULEDGER_NOEXCEPT
#endif

typedef enum gpuledger_status {
  GPULEDGER_OK = 0,
  GPULEDGER_INVALID_ARGUMENT = 1,
  GPULEDGER_OUT_OF_MEMORY = 2,       /* the message is the out-of-memory report */
  GPULEDGER_NOT_FOUND = 3,
  GPULEDGER_FAILED_PRECONDITION = 4, /* also: a verdict that is undecided */
  GPULEDGER_INTERNAL = 5
} gpuledger_status;

/* Roles in the order of gpuledger_role_name(0), (1), ...; -1 where "all roles" is allowed. */
typedef int gpuledger_role;

typedef struct gpuledger_allocator gpuledger_allocator;

typedef struct gpuledger_usage {
  uint64_t in_use, requested, pending, peak, at_device_peak, charged_ever, count, pending_count;
} gpuledger_usage;

typedef struct gpuledger_totals {
  uint64_t reserved, in_use, pending, cached, cap, peak_reserved;
} gpuledger_totals;

/* The message of the last call of this thread that failed; "" if none did. Valid until the thread's next call. */
GPULEDGER_C_EXPORT const char* gpuledger_last_error(void) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT const char* gpuledger_version(void) GPULEDGER_NOEXCEPT;
/* "source", "staging", ...; NULL past the last. */
GPULEDGER_C_EXPORT const char* gpuledger_role_name(gpuledger_role role) GPULEDGER_NOEXCEPT;

/* An allocator with a ledger of its own. `upstream`: "host-anonymous", "host-memfd" or "fake". `cap`: reserved never
 * exceeds it; 0 takes GPULEDGER_CAP, or none. GPULEDGER_ variables are read; a wrong one is an error. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_create(const char* upstream, uint64_t cap, gpuledger_allocator** allocator) GPULEDGER_NOEXCEPT;
/* GPULEDGER_FAILED_PRECONDITION, and nothing destroyed, while blocks are in use. NULL is fine. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_destroy(gpuledger_allocator* allocator) GPULEDGER_NOEXCEPT;

/* `stream`: a CUstream, NULL the default stream. Zero bytes give address 0, which gpuledger_free takes. The payer is
 * this thread's innermost owner scope. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_allocate(gpuledger_allocator* allocator, uint64_t size, void* stream, uint64_t* address) GPULEDGER_NOEXCEPT;
/* Misuse (a double free, an address that was never handed out) ends the program with a sentence; with
 * GPULEDGER_ON_MISUSE=warn the sentence goes to stderr, and nothing is freed. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_free(gpuledger_allocator* allocator, uint64_t address) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_record_stream(gpuledger_allocator* allocator, uint64_t address, void* stream) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_transfer(gpuledger_allocator* allocator, uint64_t address, const char* owner, gpuledger_role role) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_settle(gpuledger_allocator* allocator) GPULEDGER_NOEXCEPT;
/* `released` may be NULL. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_release_cached(gpuledger_allocator* allocator, uint64_t* released) GPULEDGER_NOEXCEPT;

/* What the calling thread allocates is paid by `path`, below the scope around it, until the scope is closed. `transient`:
 * what is allocated in it should be gone by then. Scopes are closed by the token they gave, on the thread that opened them,
 * the innermost first; one that is closed too early ends with the one above it, and is GPULEDGER_INVALID_ARGUMENT. What
 * a thread leaves open is closed when it ends. FAILED_PRECONDITION on a thread whose own objects are gone. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_open_scope(const char* path, gpuledger_role role, int transient, uint64_t* token) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_close_scope(uint64_t token) GPULEDGER_NOEXCEPT;
/* The same for callers to whom each nanosecond counts: the scope is known by the address of its path, which may be entered
 * many times, by many threads. `leave` ends this thread's innermost scope of that address. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_enter_scope(const char* path, gpuledger_role role, int transient) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_leave_scope(const char* path) GPULEDGER_NOEXCEPT;
/* The innermost scope, for another thread to adopt, as it is: a scope there, with a token as above. `scope` is the transient
 * scope around, 0 if there is none. */
typedef struct gpuledger_payer {
  uint32_t owner, scope;
  gpuledger_role role;
} gpuledger_payer;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_current_payer(gpuledger_payer* payer) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_adopt_payer(const gpuledger_payer* payer, uint64_t* token) GPULEDGER_NOEXCEPT;

/* `owner` NULL: all owners. `role` -1: all roles. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_get_usage(const gpuledger_allocator* allocator, const char* owner, gpuledger_role role, gpuledger_usage* usage) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_get_totals(const gpuledger_allocator* allocator, gpuledger_totals* totals) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_open_lineage(gpuledger_allocator* allocator, const char* weight) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_close_lineage(gpuledger_allocator* allocator, const char* weight) GPULEDGER_NOEXCEPT;
/* Bytes and number of allocations of roles source and staging that outlived the weight's lineage;
 * GPULEDGER_FAILED_PRECONDITION, undecided, unless it is closed. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_residual(const gpuledger_allocator* allocator, const char* weight, uint64_t* bytes, uint64_t* allocations) GPULEDGER_NOEXCEPT;
/* The statistics page, 0-terminated and cut to `size`; `needed` (may be NULL) is its length with the 0. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_report(const gpuledger_allocator* allocator, char* buffer, size_t size, size_t* needed) GPULEDGER_NOEXCEPT;
/* The equations, recomputed; GPULEDGER_INTERNAL names the one that does not hold. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_check(const gpuledger_allocator* allocator) GPULEDGER_NOEXCEPT;

/* The same over all allocators of the process, whoever made them (process.h). Sums; a peak is the sum of each one's own. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_usage(const char* owner, gpuledger_role role, gpuledger_usage* usage) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_reset_peak(void) GPULEDGER_NOEXCEPT;
/* Re-tags the block in use that starts at `address`: it is adopted, and no longer of the transient scope it was made in.
 * GPULEDGER_NOT_FOUND if there is none. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_transfer(uint64_t address, const char* owner, gpuledger_role role) GPULEDGER_NOEXCEPT;
/* Addresses and requested sizes of the blocks in use that `owner` pays for as `role` (-1: any), up to `room` of them; `count`
 * is how many there are. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_blocks(const char* owner, gpuledger_role role, uint64_t* addresses, uint64_t* sizes, uint64_t room, uint64_t* count) GPULEDGER_NOEXCEPT;
typedef enum gpuledger_lineage_state { GPULEDGER_LINEAGE_NONE = 0, GPULEDGER_LINEAGE_OPEN = 1, GPULEDGER_LINEAGE_CLOSED = 2 } gpuledger_lineage_state;
typedef struct gpuledger_lineage {
  gpuledger_lineage_state state;
  gpuledger_usage source, staging, quantized;
} gpuledger_lineage;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_lineage(const char* weight, gpuledger_lineage* lineage) GPULEDGER_NOEXCEPT;
/* FAILED_PRECONDITION if the process has no allocator yet. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_open_lineage(const char* weight) GPULEDGER_NOEXCEPT;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_close_lineage(const char* weight) GPULEDGER_NOEXCEPT;
/* Bytes and number of allocations (may be NULL) of roles source and staging that outlived the lineages of all weights that
 * match `glob`. GPULEDGER_FAILED_PRECONDITION, undecided, if no closed lineage matches, if one that matches is open, or if
 * a matching owner without a lineage holds such bytes. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_residual(const char* glob, uint64_t* bytes, uint64_t* allocations) GPULEDGER_NOEXCEPT;

/* A device that has a ledger, and its balance: sums over its ledgers, and what its driver says. The bytes that the driver has
 * given out, total - free, are reserved + external + unattributed: `external` is what the interposer saw other libraries take (0
 * where it is not loaded), and what is left over is contexts, modules and other processes. */
typedef struct gpuledger_device {
  const char* upstream; /* "cuda", "host-anonymous", ...; valid until the process ends */
  int32_t number;
  uint64_t total, free, reserved, in_use, pending, cached, external;
} gpuledger_device;
/* Up to `room` of them, in the order in which they got their first ledger; `count` is how many there are. */
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_devices(gpuledger_device* devices, uint64_t room, uint64_t* count) GPULEDGER_NOEXCEPT;
/* What each owner has in use on a device in each role, without those that have nothing, largest first; their sum is the
 * device's in_use if nobody allocates meanwhile. `owner` is valid until the process ends. */
typedef struct gpuledger_owner_usage {
  const char* owner;
  gpuledger_role role;
  gpuledger_usage usage;
} gpuledger_owner_usage;
GPULEDGER_C_EXPORT gpuledger_status gpuledger_process_owners(const char* upstream, int32_t number, gpuledger_owner_usage* owners, uint64_t room, uint64_t* count) GPULEDGER_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif  /* GPULEDGER_GPULEDGER_H_ */
