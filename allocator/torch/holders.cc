// Counting holders, and the weak registry of watched sources.
#include "holders.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include <ATen/EmptyTensor.h>
#include <ATen/MapAllocator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/COW.h>
#include <fmt/format.h>

namespace gpuledger::pytorch {
namespace {

// Strong references to one TensorImpl or StorageImpl. Its Python object, if it has one, is one of them; while there are
// others, C++ holds one reference to the Python object in return.
struct Count {
  uint32_t strong = 0;
  bool has_python = false;
  uint64_t python_references = 0;  // held by Python itself

  template <class Target>
  static Count Of(const Target& target) {
    Count count;
    count.strong = c10::raw::intrusive_ptr::use_count(const_cast<Target*>(&target));
    const c10::impl::PyObjectSlot* const slot = target.pyobj_slot();
    if (PyObject* const object = slot->load_pyobj(); object != nullptr) {
      count.has_python = true;
      const uint64_t references = slot->load_pyobj_interpreter()->refcnt(object);
      count.python_references = references - std::min<uint64_t>(references, count.strong >= 2 ? 1 : 0);
    }
    return count;
  }
  // Held by C++, not by the Python object.
  [[nodiscard]] uint64_t native() const { return strong - (has_python ? 1 : 0); }
};

uint64_t Beyond(uint64_t count, uint64_t baseline) { return count - std::min(count, baseline); }

// The counts of a tensor that nobody shares, as this LibTorch has them.
struct Baseline {
  uint64_t per_handle;
  uint64_t per_storage;
};
const Baseline& FreshTensor() {
  static const Baseline baseline = [] {
    const at::TensorBase fresh = at::detail::empty_cpu({0}, c10::ScalarType::Byte);
    return Baseline{Count::Of(*fresh.unsafeGetTensorImpl()).native(),
                    Count::Of(*fresh.storage().unsafeGetStorageImpl()).native()};
  }();
  return baseline;
}

struct Watch {
  OwnerId owner;
  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
};
struct Registry {
  std::mutex lock;
  std::vector<Watch> watches;
  size_t prune_at = 64;
};
// Never destroyed: reports are legal after main().
Registry& Watches() {
  static auto* const registry = new Registry;
  return *registry;
}

// The tensor first watched may be gone, or have another storage by now, while others keep this one.
HolderCounts CountWatched(const Watch& watch, const c10::intrusive_ptr<c10::StorageImpl>& storage) {
  if (const auto tensor = watch.tensor.lock();
      tensor && tensor->has_storage() && tensor->storage().unsafeGetStorageImpl() == storage.get()) {
    HolderCounts counts = CountHolders(*tensor, {.handles = 1});
    counts.aliases = Beyond(counts.aliases, 1);  // `storage`
    return counts;
  }
  const Count count = Count::Of(*storage);
  HolderCounts counts;
  counts.aliases = Beyond(count.native(), 1);
  counts.python_storages = count.python_references;
  return counts;
}

}  // namespace

HolderCounts CountHolders(const c10::TensorImpl& impl, OwnReferences own) {
  const Baseline& fresh = FreshTensor();
  const Count tensor = Count::Of(impl);
  const Count storage = Count::Of(*impl.storage().unsafeGetStorageImpl());
  HolderCounts counts;
  counts.tensor_handles = Beyond(tensor.native(), own.handles * fresh.per_handle);
  counts.aliases = Beyond(storage.native(), fresh.per_storage);
  counts.python_references = Beyond(tensor.python_references, own.python_references);
  counts.python_storages = storage.python_references;
  return counts;
}

HolderCounts CountHolders(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return {};
  return CountHolders(*tensor.unsafeGetTensorImpl(), {.handles = 1});
}

HolderCounts& HolderCounts::operator+=(const HolderCounts& other) {
  tensor_handles += other.tensor_handles;
  aliases += other.aliases;
  python_references += other.python_references;
  python_storages += other.python_storages;
  return *this;
}

std::string Describe(const HolderCounts& holders) {
  std::string text;
  const auto add = [&text](uint64_t count, std::string_view one, std::string_view several) {
    if (count == 0) return;
    if (!text.empty()) text += ", ";
    text += fmt::format("{} {}", count, count == 1 ? one : several);
  };
  add(holders.tensor_handles, "handle of the same tensor", "handles of the same tensor");
  add(holders.aliases, "other tensor on its storage", "other tensors on its storage");
  add(holders.python_references, "Python reference to the tensor", "Python references to the tensor");
  add(holders.python_storages, "Python reference to the storage", "Python references to the storage");
  return text.empty() ? "no other holder" : text;
}

std::string Obstacle(const c10::StorageImpl& storage) {
  const c10::DataPtr& data = const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks();
  if (data.get() == nullptr) return "";
  if (c10::impl::cow::is_cow_data_ptr(data)) return "a copy-on-write sibling shares its bytes";
  if (const auto* map = at::MapAllocator::fromDataPtr(data)) {
    return fmt::format("its bytes are a mapped file or shared memory ({})", map->filename());
  }
  if (const auto* map = at::RefcountedMapAllocator::fromDataPtr(data)) {
    return fmt::format("its bytes are a mapped file or shared memory ({})", map->filename());
  }
  if (storage.allocator() == nullptr || data.get_context() == nullptr) {
    return "its bytes are a blob that something else owns (from_blob, from_numpy, shared memory, another process)";
  }
  // What frees it is not what frees its allocator's memory: PyTorch wraps what it has sent to another process.
  if (storage.device_type() == c10::DeviceType::CUDA && storage.allocator()->raw_deleter() != nullptr &&
      storage.allocator()->raw_deleter() != data.get_deleter()) {
    return "its bytes are in use elsewhere, such as by a process that it was sent to";
  }
  if (!storage.resizable()) {
    return "its bytes were exported (a NumPy array, a slice of a storage): it is marked not resizable";
  }
  return "";
}

void WatchSource(const at::Tensor& tensor, OwnerId owner) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  Registry& registry = Watches();
  const std::lock_guard guard(registry.lock);
  if (registry.watches.size() >= registry.prune_at) {
    std::erase_if(registry.watches, [](const Watch& watch) { return watch.storage.expired(); });
    registry.prune_at = std::max<size_t>(64, 2 * registry.watches.size());
  }
  registry.watches.push_back(
      {owner, c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>(tensor.getIntrusivePtr()),
       tensor.storage().getWeakStorageImpl()});
}

std::vector<WatchedStorage> Holders(OwnerId owner) {
  // Copied out first: locking a weak reference may wait for Python's lock, which must not happen under ours.
  std::vector<Watch> watches;
  {
    Registry& registry = Watches();
    const std::lock_guard guard(registry.lock);
    for (const Watch& watch : registry.watches) {
      if (watch.owner == owner) watches.push_back(watch);
    }
  }
  std::vector<WatchedStorage> held;
  for (const Watch& watch : watches) {
    const c10::intrusive_ptr<c10::StorageImpl> storage = watch.storage.lock();
    if (!storage) continue;
    const bool freed = storage->_mutable_data_ptr_no_checks().get() == nullptr;
    held.push_back({freed ? Bytes() : Bytes(storage->nbytes()), CountWatched(watch, storage)});
  }
  return held;
}

void LockWatchesForFork() { Watches().lock.lock(); }
void UnlockWatchesAfterFork() { Watches().lock.unlock(); }

}  // namespace gpuledger::pytorch
