#include "stack_python.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

#include <absl/container/flat_hash_map.h>

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
  bool complete = false;
};

template <class Function>
bool Find(Function*& function, const char* name, const char* or_name = nullptr) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  if (function == nullptr && or_name != nullptr) function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, or_name));
  return function != nullptr;
}

Api Load() {
  Api a{};
  a.complete = Find(a.is_initialized, "Py_IsInitialized") & Find(a.current_thread_state, "PyThreadState_GetUnchecked", "_PyThreadState_UncheckedGet") &
               Find(a.this_thread_state, "PyGILState_GetThisThreadState") & Find(a.current_frame, "PyEval_GetFrame") &
               Find(a.code_of, "PyFrame_GetCode") & Find(a.back_of, "PyFrame_GetBack") & Find(a.line_of, "PyFrame_GetLineNumber") &
               Find(a.line_at, "PyCode_Addr2Line") & Find(a.attribute, "PyObject_GetAttrString") & Find(a.utf8, "PyUnicode_AsUTF8") &
               Find(a.keep, "Py_IncRef") & Find(a.drop, "Py_DecRef") & Find(a.fetch_error, "PyErr_Fetch") & Find(a.restore_error, "PyErr_Restore");
  Find(a.last_instruction, "PyFrame_GetLasti");
  return a;
}

// Null while the process has no Python; looked for again now and then, since one may be loaded later.
const Api* TheApi() noexcept {
  static std::atomic<const Api*> found{nullptr};
  static std::atomic<uint32_t> asked{0};
  if (const Api* const api = found.load(std::memory_order_acquire)) return api;
  if (asked.fetch_add(1, std::memory_order_relaxed) % 4096 != 0) return nullptr;
  const Api api = Load();
  if (!api.complete) return nullptr;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (found.load() == nullptr) found.store(new Api(api), std::memory_order_release);
  return found.load();
}

// Up to 3.11 the current thread state is that of whoever holds the lock.
bool Attached(const Api& api) noexcept {
  if (api.is_initialized() == 0) return false;
  void* const current = api.current_thread_state();
  return current != nullptr && current == api.this_thread_state();
}

std::string Text(const Api& api, void* code, const char* name) {
  void* const object = api.attribute(code, name);
  if (object == nullptr) return "";
  const char* const utf8 = api.utf8(object);
  std::string text = utf8 == nullptr ? "" : utf8;
  api.drop(object);
  return text;
}

struct Codes {
  std::mutex mutex;
  absl::flat_hash_map<void*, Name> names;
};
Codes& AllCodes() {
  static auto& codes = *new Codes;
  return codes;
}

}  // namespace

size_t TakeFrames(Frame* frames, size_t room) noexcept {
  const Api* const api = TheApi();
  if (api == nullptr || !Attached(*api)) return 0;
  void* frame = api->current_frame();
  if (frame == nullptr) return 0;
  api->keep(frame);
  size_t count = 0;
  while (frame != nullptr && count < room) {
    void* const code = api->code_of(frame);
    frames[count++] = {code, api->last_instruction != nullptr ? api->last_instruction(frame) : api->line_of(frame)};
    api->drop(code);  // its frame holds it
    void* const back = api->back_of(frame);
    api->drop(frame);
    frame = back;
  }
  if (frame != nullptr) api->drop(frame);
  return count;
}

Name NameOf(Frame frame) {
  const Api& api = *TheApi();
  Codes& codes = AllCodes();
  Name name;
  {
    const std::lock_guard lock(codes.mutex);
    if (const auto found = codes.names.find(frame.code); found != codes.names.end()) name = found->second;
  }
  if (name.file.empty()) {
    void *type = nullptr, *value = nullptr, *traceback = nullptr;
    api.fetch_error(&type, &value, &traceback);
    api.keep(frame.code);  // for good: its address is its name here
    name.function = Text(api, frame.code, "co_qualname");
    if (name.function.empty()) name.function = Text(api, frame.code, "co_name");
    name.file = Text(api, frame.code, "co_filename");
    api.restore_error(type, value, traceback);
    const std::lock_guard lock(codes.mutex);
    codes.names.emplace(frame.code, name);
  }
  const int line = api.last_instruction != nullptr ? api.line_at(frame.code, frame.at) : frame.at;
  name.line = line > 0 ? static_cast<uint32_t>(line) : 0;
  return name;
}

uintptr_t InterpreterAddress() noexcept {
  const Api* const api = TheApi();
  return api == nullptr ? 0 : reinterpret_cast<uintptr_t>(api->current_frame);
}

}  // namespace gpuledger::python
