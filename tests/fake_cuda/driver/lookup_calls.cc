// From a name, a version and the default stream that is meant to an entry point.
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "driver_functions.h"
#include "entry.h"

namespace fake_cuda {
namespace {

using Forms = std::vector<const Symbol*>;

// By the name that callers ask for, and by the exported one.
const std::unordered_map<std::string_view, Forms>& AllForms() {
  static const auto* const forms = [] {
    auto* const all = new std::unordered_map<std::string_view, Forms>;
    for (unsigned i = 0; i < kSymbolCount; ++i) (*all)[kSymbols[i].base].push_back(&kSymbols[i]);
    for (unsigned i = 0; i < kSymbolCount; ++i) {
      Forms& exact = (*all)[kSymbols[i].name];
      if (exact.empty()) exact.push_back(&kSymbols[i]);
    }
    return all;
  }();
  return *forms;
}

// The newest form that `version` has: for the thread's own default stream if there is such a form and it is wanted.
CUresult Find(const char* name, void** address, int version, cuuint64_t flags, CUdriverProcAddressQueryResult* status) {
  if (name == nullptr || address == nullptr || flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *address = nullptr;
  const auto say = [&](CUdriverProcAddressQueryResult value) {
    if (status != nullptr) *status = value;
  };
  const auto found = AllForms().find(name);
  if (found == AllForms().end()) {
    say(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    return CUDA_ERROR_NOT_FOUND;
  }
  const bool per_thread = flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  const Symbol* best = nullptr;
  for (const Symbol* const form : found->second) {
    if (form->since > version) continue;
    if (form->is(kPerThread) && !per_thread && found->second.size() > 1) continue;
    const bool better = best == nullptr || form->is(kPerThread) > best->is(kPerThread) ||
                        (form->is(kPerThread) == best->is(kPerThread) && form->since > best->since);
    if (better) best = form;
  }
  if (best == nullptr) {
    say(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
    return CUDA_ERROR_NOT_FOUND;
  }
  *address = best->address;
  say(CU_GET_PROC_ADDRESS_SUCCESS);
  return CUDA_SUCCESS;
}

}  // namespace

bool KnownFunction(std::string_view base) {
  const auto found = AllForms().find(base);
  return found != AllForms().end() && found->second.front()->base == base;
}

CUresult cuGetProcAddress_v2(const char* name, void** address, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* status) {
  return Find(name, address, version, flags, status);
}

CUresult cuGetProcAddress(const char* name, void** address, int version, cuuint64_t flags) {
  return Find(name, address, version, flags, nullptr);
}

}  // namespace fake_cuda
