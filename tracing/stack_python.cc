#include "stack_python.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "python_frames.h"

namespace gpuledger::python {
namespace {

// Python's C API as far as it is used; objects are void*.
struct Api {
  int (*is_initialized)();
  void* (*current_thread_state)();      // of the thread that holds the lock: this one's, from 3.12 on
  void* (*this_thread_state)();         // PyGILState_GetThisThreadState
  void* (*current_frame)();             // PyEval_GetFrame: borrowed
  void* (*code_of)(void* frame);        // new
  void* (*back_of)(void* frame);        // new, or null
  int (*last_instruction)(void* frame); // null before 3.11
  int (*line_of)(void* frame);
  int (*line_at)(void* code, int at);
  void* (*attribute)(void* object, const char* name);
  const char* (*utf8)(void* object);
  void (*keep)(void* object);
  void (*drop)(void* object);
  void (*fetch_error)(void** type, void** value, void** traceback);
  void (*restore_error)(void* type, void* value, void* traceback);
  void* code_type;
  bool complete = false;
  bool state_is_this_threads = false;
  std::optional<FrameLayout> layout;
};

template <class Function>
bool Find(Function*& function, const char* name, const char* or_name = nullptr) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  if (function == nullptr && or_name != nullptr) function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, or_name));
  return function != nullptr;
}

Api Load() {
  Api a{};
  if (!Find(a.is_initialized, "Py_IsInitialized")) return a;
  a.complete = Find(a.current_thread_state, "PyThreadState_GetUnchecked", "_PyThreadState_UncheckedGet") &
               Find(a.this_thread_state, "PyGILState_GetThisThreadState") & Find(a.current_frame, "PyEval_GetFrame") &
               Find(a.code_of, "PyFrame_GetCode") & Find(a.back_of, "PyFrame_GetBack") & Find(a.line_of, "PyFrame_GetLineNumber") &
               Find(a.line_at, "PyCode_Addr2Line") & Find(a.attribute, "PyObject_GetAttrString") & Find(a.utf8, "PyUnicode_AsUTF8") &
               Find(a.keep, "Py_IncRef") & Find(a.drop, "Py_DecRef") & Find(a.fetch_error, "PyErr_Fetch") &
               Find(a.restore_error, "PyErr_Restore");
  Find(a.last_instruction, "PyFrame_GetLasti");
  a.code_type = dlsym(RTLD_DEFAULT, "PyCode_Type");
  unsigned long version = 0;
  if (const auto* const known = static_cast<const unsigned long*>(dlsym(RTLD_DEFAULT, "Py_Version")); known != nullptr) {
    version = *known;
  } else if (a.last_instruction == nullptr && dlsym(RTLD_DEFAULT, "PyModule_AddObjectRef") != nullptr) {
    version = 0x030a0000;  // 3.10 has the one already, and the other not yet
  }
  a.state_is_this_threads = version >> 16 >= 0x030c;
  if (a.code_type != nullptr) a.layout = LayoutOf(version, dlsym(RTLD_DEFAULT, "_PyRuntime"));
  return a;
}

std::atomic<const Api*> found_api{nullptr};

// Null while the process has no Python; looked for again now and then, since one may be loaded later.
const Api* TheApi() noexcept {
  if (const Api* const api = found_api.load(std::memory_order_acquire)) return api;
  thread_local uint32_t asked = 0;
  if (asked++ % 4096 != 0) return nullptr;
  auto api = std::make_unique<Api>(Load());
  if (!api->complete) return nullptr;
  const Api* before = nullptr;
  if (found_api.compare_exchange_strong(before, api.get(), std::memory_order_acq_rel)) return api.release();
  return before;
}

// The state of this thread if it holds the lock. Before 3.12 the current state is that of whoever holds it.
void* Attached(const Api& api) noexcept {
  if (api.is_initialized() == 0) return nullptr;
  void* const current = api.current_thread_state();
  return current == nullptr || api.state_is_this_threads || current == api.this_thread_state() ? current : nullptr;
}

size_t ByApi(const Api& api, Frame* frames, size_t room) noexcept {
  void* frame = api.current_frame();
  if (frame == nullptr) return 0;
  api.keep(frame);
  size_t count = 0;
  while (frame != nullptr && count < room) {
    void* const code = api.code_of(frame);
    const bool old = api.last_instruction == nullptr;  // then each call of a function enters the interpreter anew
    frames[count++] = {code, old ? api.line_of(frame) : api.last_instruction(frame), 0, old};
    api.drop(code);  // its frame holds it
    void* const back = api.back_of(frame);
    api.drop(frame);
    frame = back;
  }
  if (frame != nullptr) api.drop(frame);
  return count;
}

enum class Trust : uint8_t { kUnchecked, kConfirmed, kRefuted };
std::atomic<Trust> trust{Trust::kUnchecked};

std::string Text(const Api& api, void* code, const char* name) {
  void* const object = api.attribute(code, name);
  const char* const utf8 = object == nullptr ? nullptr : api.utf8(object);
  std::string text = utf8 == nullptr ? "" : utf8;
  if (object != nullptr) api.drop(object);
  api.restore_error(nullptr, nullptr, nullptr);
  return text;
}

// What is raised at the moment stays raised.
Name NamesByApi(const Api& api, void* code) {
  void *type = nullptr, *value = nullptr, *traceback = nullptr;
  api.fetch_error(&type, &value, &traceback);
  Name name;
  name.function = Text(api, code, "co_qualname");  // from 3.11 on
  if (name.function.empty()) name.function = Text(api, code, "co_name");
  name.file = Text(api, code, "co_filename");
  api.restore_error(type, value, traceback);
  return name;
}

// Once in a process: whether what the layout gives, read without risk, is what the API says.
[[gnu::noinline, gnu::cold]] Trust CheckLayout(const Api& api, const void* thread) noexcept {
  constexpr size_t kMost = 16;
  Frame told[kMost], read[kMost];
  const size_t count = ByApi(api, told, kMost);
  if (count == 0) return Trust::kUnchecked;
  const auto carefully = [](uintptr_t at, void* to, size_t size) {
    const iovec from{reinterpret_cast<void*>(at), size}, into{to, size};
    return process_vm_readv(getpid(), &into, 1, &from, 1, 0) == static_cast<ssize_t>(size);
  };
  const std::optional<size_t> walked = WalkFrames(*api.layout, thread, api.code_type, read, kMost, carefully);
  const auto alike = [&api](const Frame& r, const Frame& t) {
    if (r.code != t.code || (api.last_instruction == nullptr ? api.line_at(r.code, r.at) : r.at) != t.at) return false;
    const Name names = NamesIn(*api.layout, r.code), right = NamesByApi(api, r.code);
    return names.function == right.function && names.file == right.file;
  };
  // Names are read without care: if the code objects are right, so are they where the version says.
  const Trust found = walked == count && std::equal(read, read + count, told, alike) ? Trust::kConfirmed : Trust::kRefuted;
  trust.store(found, std::memory_order_relaxed);
  return found;
}

struct Names {
  std::mutex mutex;
  absl::flat_hash_map<std::pair<void*, uint32_t>, Name> of;  // by code object and what its names are
  absl::flat_hash_set<void*> kept;                           // code objects that are referred to, for good
};
Names& AllNames() {
  static auto& names = *new Names;
  return names;
}

// Whether the layout can be used; if nobody knows yet, a thread that has the GIL finds out.
bool LayoutHolds(const Api& api, const void* attached) noexcept {
  if (!api.layout) return false;
  Trust layout = trust.load(std::memory_order_relaxed);
  if (layout == Trust::kUnchecked && attached != nullptr) layout = CheckLayout(api, attached);
  return layout == Trust::kConfirmed;
}

}  // namespace

void Prepare() noexcept {
  if (const Api* const api = TheApi()) LayoutHolds(*api, Attached(*api));
}

size_t TakeFrames(Frame* frames, size_t room) noexcept {
  const Api* const api = TheApi();
  if (api == nullptr || api->is_initialized() == 0) return 0;
  const void* const attached = Attached(*api);
  if (!LayoutHolds(*api, attached)) return attached == nullptr ? 0 : ByApi(*api, frames, room);
  const void* const thread = attached != nullptr ? attached : api->this_thread_state();
  if (thread == nullptr) return 0;
  const auto directly = [](uintptr_t at, void* to, size_t size) { return std::memcpy(to, reinterpret_cast<const void*>(at), size), true; };
  return WalkFrames(*api->layout, thread, api->code_type, frames, room, directly).value_or(0);
}

Name NameOf(Frame frame) {
  const Api& api = *TheApi();
  const void* const attached = Attached(api);
  const bool layout_holds = LayoutHolds(api, nullptr);
  Names& names = AllNames();
  Name name;
  bool known = false;
  {
    const std::lock_guard lock(names.mutex);
    if (const auto found = names.of.find({frame.code, frame.names}); found != names.of.end()) name = found->second, known = true;
  }
  if (!known) name = layout_holds ? NamesIn(*api.layout, frame.code) : NamesByApi(api, frame.code);
  {
    const std::lock_guard lock(names.mutex);
    if (!known) names.of.emplace(std::pair(frame.code, frame.names), name);
    if (attached != nullptr && names.kept.insert(frame.code).second) api.keep(frame.code);
  }
  const int line = layout_holds || api.last_instruction != nullptr ? api.line_at(frame.code, frame.at) : frame.at;
  name.line = line > 0 ? static_cast<uint32_t>(line) : 0;
  return name;
}

Interpreter TheInterpreter() noexcept {
  if (found_api.load(std::memory_order_acquire) == nullptr) return {};
  void* const loop = dlsym(RTLD_DEFAULT, "_PyEval_EvalFrameDefault");
  Dl_info info;
  void* symbol = nullptr;
  if (loop == nullptr || dladdr1(loop, &info, &symbol, RTLD_DL_SYMENT) == 0 || symbol == nullptr) return {};
  const auto begin = reinterpret_cast<uintptr_t>(loop);
  return {begin, begin + static_cast<const ElfW(Sym)*>(symbol)->st_size};
}

void LockNamesForFork() noexcept { AllNames().mutex.lock(); }
void UnlockNamesAfterFork() noexcept { AllNames().mutex.unlock(); }

}  // namespace gpuledger::python
