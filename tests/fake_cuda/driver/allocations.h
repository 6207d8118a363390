// The book of all memory that the program was given by address: who gave it, and how it goes back.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "device_memory.h"

namespace fake_cuda {

struct Context;
struct Pool;

enum class Family { kDevice, kManaged, kHost, kRegistered, kPool, kIpc, kGraph, kMapped };

struct Allocation {
  Address address;
  uint64_t size;  // as asked for
  Family family;
  int device;
  Context* context;  // null for mapped memory
  uint64_t id = 0;   // never used twice
  unsigned flags = 0;
  std::shared_ptr<Physical> physical = nullptr;  // what it holds, unless it lies in shared segments or on the host
  Address mapped = 0;                            // of IPC memory: where all of `physical` is
  Pool* pool = nullptr;                          // of stream-ordered memory
  unsigned opened = 1;                           // how often an IPC handle was opened
  int ipc_pid = 0;                               // whose it is
  uint64_t ipc_ticket = 0;
  std::map<int, int> access = {};  // of mapped memory: PROT_* by device

  Address end() const { return address + size; }
  int protection() const;  // what any device may do
  bool on_device() const { return family != Family::kHost && family != Family::kRegistered; }
};

class Allocations {
 public:
  Allocation& Add(Allocation allocation);
  void Remove(Address address, const char* by);

  Allocation* At(Address address);          // that starts here
  Allocation* Containing(Address address);  // that this lies in
  bool Overlaps(Address address, uint64_t size) const;

  // Whether every byte belongs to some allocation and can be read (or written).
  bool Covers(Address address, uint64_t size);

  // Why `address` cannot be freed, as a clause: "0x… was freed before, by cuMemFree_v2".
  std::string Explain(Address address);

  std::map<Address, Allocation>& all() { return all_; }

 private:
  std::map<Address, Allocation> all_;
  std::unordered_map<Address, const char*> freed_;  // by which call; forgotten when the address is used again
  uint64_t next_id_ = 1;
};

// "cuMemAlloc", and what frees it.
const char* AllocatedBy(Family family);
const char* FreedBy(Family family);

}  // namespace fake_cuda
