// gpuledger/sites.h - call stacks as ids: taken outside all locks, interned once, given names when a report is made.
//
// A site is a native stack, and in a Python process the Python stack on top of it, merged in order: Python frames stand where
// their interpreter's native frames are. Ids share one number space with SiteHere's (owner.h); those of stacks have the
// highest bit set. Thread-safe. The GIL is never taken and need not be held
// (PyTorch gives it up before it allocates); a thread that is none of Python's has native frames alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gpuledger/types.h"

namespace gpuledger {

// Of the calling thread, without this function's own frames. kNoSite if nothing could be taken. Never throws; allocates host
// memory only for a stack that is new.
GPULEDGER_EXPORT SiteId TakeSite() noexcept;
// Whether ways in take a site for each allocation (CurrentSite(), owner.h). Off until it is switched on; GPULEDGER_STACKS=
// none, native, python, all at load.
GPULEDGER_EXPORT void SetStacks(bool native, bool python);

// Frames of a site as they were taken, innermost first.
struct SiteFrame {
  bool python = false;
  uint32_t module = 0;      // native: an id of ModuleById; 0: none
  uint64_t offset = 0;      // native: of the call within the module's file image (address minus load address)
  std::string function;     // of Python
  std::string file;         // of Python
  uint32_t line = 0;        // of Python
};
// False if the id is not a stack's (SiteHere's, or unknown).
GPULEDGER_EXPORT bool FramesOf(SiteId site, std::vector<SiteFrame>* frames);

// A file that was mapped for execution when a frame in it was taken.
struct LoadedModule {
  std::string path;
  std::string build_id;  // hexadecimal, "" if it has none
  uint64_t load_address = 0;
};
GPULEDGER_EXPORT bool ModuleById(uint32_t module, LoadedModule* found);

}  // namespace gpuledger
