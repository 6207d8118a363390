#include "stack_python.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include <absl/container/flat_hash_map.h>

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
  const auto* const version = static_cast<const unsigned long*>(dlsym(RTLD_DEFAULT, "Py_Version"));  // from 3.11 on
  if (version != nullptr && *version >> 16 >= 0x030c) a.state_is_this_threads = true;
  if (version != nullptr && a.code_type != nullptr) a.layout = LayoutOf(*version, dlsym(RTLD_DEFAULT, "_PyRuntime"));
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
    frames[count++] = {code, old ? api.line_of(frame) : api.last_instruction(frame), old};
    api.drop(code);  // its frame holds it
    void* const back = api.back_of(frame);
    api.drop(frame);
    frame = back;
  }
  if (frame != nullptr) api.drop(frame);
  return count;
}

// Where names are, to read them on a thread without the lock: in a code object, and the characters of an ASCII str.
struct TextPlaces {
  size_t file = 0, function = 0, characters = 0;
  uint32_t state = 0;  // of an ASCII str: kind, compact, ASCII
};
constexpr size_t kTextLength = 16, kTextState = 32;
constexpr uint32_t kTextStateBits = 0x7c;
TextPlaces text_places;  // written once, before `trust` says so

template <class T>
T Read(const void* base, size_t offset) {
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + offset, sizeof value);
  return value;
}

bool CarefullyRead(uintptr_t at, void* to, size_t size) {
  const iovec from{reinterpret_cast<void*>(at), size}, into{to, size};
  return process_vm_readv(getpid(), &into, 1, &from, 1, 0) == static_cast<ssize_t>(size);
}

// Looks for what the API gives among the words of the code object. Files and functions that are not ASCII teach nothing.
bool LearnTextPlaces(const Api& api, void* code) {
  TextPlaces places;
  for (const auto& [name, place] : {std::pair{"co_filename", &places.file}, std::pair{"co_qualname", &places.function}}) {
    void* const text = api.attribute(code, name);
    if (text == nullptr) return api.restore_error(nullptr, nullptr, nullptr), false;
    for (size_t offset = 16; offset < 256 && *place == 0; offset += sizeof(void*)) {
      void* word = nullptr;
      if (CarefullyRead(reinterpret_cast<uintptr_t>(code) + offset, &word, sizeof word) && word == text) *place = offset;
    }
    const char* const characters = api.utf8(text);
    places.characters = static_cast<size_t>(characters - static_cast<const char*>(text));
    places.state = Read<uint32_t>(text, kTextState) & kTextStateBits;
    api.drop(text);  // the code object has it
    if (*place == 0 || places.characters > 64) return false;
  }
  text_places = places;
  return true;
}

std::string TextInPlace(void* code, size_t offset) {
  const auto* const text = Read<const char*>(code, offset);
  const auto length = Read<int64_t>(text, kTextLength);
  if ((Read<uint32_t>(text, kTextState) & kTextStateBits) != text_places.state || length <= 0 || length > 4096) return "?";
  return std::string(text + text_places.characters, static_cast<size_t>(length));
}

enum class Trust : uint8_t { kUnchecked, kConfirmed, kRefuted };
std::atomic<Trust> trust{Trust::kUnchecked};

// Once in a process: what the layout gives, read without risk, is what the API says.
size_t ByApiCheckingLayout(const Api& api, const void* thread, Frame* frames, size_t room) noexcept {
  const size_t count = ByApi(api, frames, room);
  if (count == 0) return 0;
  constexpr size_t kMost = 16;
  Frame seen[kMost];
  const std::optional<size_t> walked = WalkFrames(*api.layout, thread, api.code_type, seen, std::min(room, kMost), CarefullyRead);
  const bool same = walked == std::min(count, kMost) && std::equal(seen, seen + *walked, frames, [](const Frame& a, const Frame& b) {
    return a.code == b.code && a.at == b.at;
  }) && LearnTextPlaces(api, frames[0].code);
  trust.store(same ? Trust::kConfirmed : Trust::kRefuted, std::memory_order_release);
  return count;
}

std::string Text(const Api& api, void* code, const char* name) {
  void* const object = api.attribute(code, name);
  const char* const utf8 = object == nullptr ? nullptr : api.utf8(object);
  std::string text = utf8 == nullptr ? "" : utf8;
  if (object != nullptr) api.drop(object);
  api.restore_error(nullptr, nullptr, nullptr);
  return text;
}

struct Names {
  std::mutex mutex;
  absl::flat_hash_map<void*, Name> of;  // by code object
};
Names& AllNames() {
  static auto& names = *new Names;
  return names;
}

}  // namespace

size_t TakeFrames(Frame* frames, size_t room) noexcept {
  const Api* const api = TheApi();
  if (api == nullptr) return 0;
  const Trust layout = trust.load(std::memory_order_acquire);
  const void* thread = Attached(*api);
  // PyTorch lets go of the lock before it allocates. The frames of this thread lie still while it is in native code.
  if (thread == nullptr && layout == Trust::kConfirmed && api->is_initialized() != 0) thread = api->this_thread_state();
  if (thread == nullptr) return 0;
  if (layout == Trust::kRefuted || !api->layout) return ByApi(*api, frames, room);
  if (layout == Trust::kUnchecked) return ByApiCheckingLayout(*api, thread, frames, room);
  const auto directly = [](uintptr_t at, void* to, size_t size) { return std::memcpy(to, reinterpret_cast<const void*>(at), size), true; };
  return WalkFrames(*api->layout, thread, api->code_type, frames, room, directly).value_or(0);
}

Name NameOf(Frame frame) {
  const Api& api = *TheApi();
  Names& names = AllNames();
  Name name;
  bool known = false;
  {
    const std::lock_guard lock(names.mutex);
    if (const auto found = names.of.find(frame.code); found != names.of.end()) name = found->second, known = true;
  }
  // Without the lock no reference can be kept: should the code object go and another one come to lie there, that has its name.
  const bool attached = Attached(api) != nullptr;
  if (!known && !attached) {
    name.function = TextInPlace(frame.code, text_places.function);
    name.file = TextInPlace(frame.code, text_places.file);
  } else if (!known) {
    void *type = nullptr, *value = nullptr, *traceback = nullptr;
    api.fetch_error(&type, &value, &traceback);
    name.function = Text(api, frame.code, "co_qualname");  // from 3.11 on
    if (name.function.empty()) name.function = Text(api, frame.code, "co_name");
    name.file = Text(api, frame.code, "co_filename");
    api.restore_error(type, value, traceback);
    const std::lock_guard lock(names.mutex);
    // For good: its address is its name here.
    if (names.of.emplace(frame.code, name).second) api.keep(frame.code);
  }
  const int line = api.last_instruction != nullptr ? api.line_at(frame.code, frame.at) : frame.at;
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
