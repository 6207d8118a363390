// The whole state of the fake: devices, contexts, and the objects that a program has handles of. One mutex guards it
// (entry.h takes it). It is made on the first call and never destroyed: programs call CUDA until their last instant.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "device_memory.h"
#include "driver_api.h"
#include "handles.h"
#include "held_work.h"
#include "options.h"
#include "segments.h"

namespace fake_cuda {

struct Capture;
struct Event;
struct Function;
struct Graph;
struct GraphExec;
struct MemoryHandle;
struct Module;
struct Node;
struct Pool;
struct Stream;
struct UserObject;

struct Device;

struct Context {
  Device* device = nullptr;
  uint64_t id = 0;
  unsigned flags = 0;
  bool primary = false;
  unsigned retained = 0;  // of a primary context
  bool active = false;    // memory, streams and events of it are usable
  CUfunc_cache cache_config = CU_FUNC_CACHE_PREFER_NONE;
  CUsharedconfig shared_config = CU_SHARED_MEM_CONFIG_DEFAULT_BANK_SIZE;
  std::map<CUlimit, size_t> limits;
  std::set<Context*> peers;
  Stream* legacy = nullptr;
  std::map<std::thread::id, Stream*> per_thread;
};

struct Device {
  Device(int index, uint64_t size) : ordinal(index), memory(index, size), small(memory, kGranule) {}
  const int ordinal;
  DeviceMemory memory;
  Segments small;
  Context* primary = nullptr;
  Pool* default_pool = nullptr;
  Pool* pool = nullptr;
  uint64_t graph_bytes = 0, graph_high = 0;
};

struct Range {
  uint64_t size;
};

struct Driver {
  std::mutex mutex;
  Options options;
  std::vector<std::unique_ptr<Device>> devices;

  Allocations allocations;
  std::map<Address, Range> ranges;                                   // cuMemAddressReserve
  std::map<uint64_t, std::shared_ptr<MemoryHandle>> memory_handles;  // cuMemCreate
  std::map<Address, std::shared_ptr<MemoryHandle>> mappings;         // cuMemMap, as in `allocations`
  Handles<Context> contexts;
  Handles<Stream> streams;
  Handles<Event> events;
  Handles<Pool> pools;
  Handles<Graph> graphs;
  Handles<GraphExec> execs;
  Handles<Node> nodes;
  Handles<UserObject> user_objects;
  Handles<Module> modules;
  Handles<Function> functions;
  HeldWork held;
  std::vector<std::shared_ptr<Capture>> captures;  // begun and not ended
  uint64_t next_id = 1;
};

Driver& driver();

// The device with this number, or null.
Device* FindDevice(int ordinal);

// The context that is current in this thread, or null and the reason: no context, or one that was reset or destroyed.
Context* CurrentContext(CUresult& result);
std::vector<Context*>& ContextStack();

// Frees what a context owns and makes its handles invalid. `by` is named when one of them is used afterwards.
void TearDown(Context& context, const char* by);

// Gives one allocation back, whatever its family. Defined in memory_calls.cc.
void FreeAllocation(Allocation& allocation, const char* by);

// How handles of cuMemCreate may be exported. Defined in virtual_calls.cc.
CUmemAllocationHandleType HandleTypesOf(const MemoryHandle& handle);

// Waits for the work of one context, or of all.
CUresult WaitForAll(Context* context);

}  // namespace fake_cuda
