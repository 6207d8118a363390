#include "graph.h"

#include <sys/mman.h>

#include <algorithm>
#include <unordered_map>

#include "entry.h"

namespace fake_cuda {

std::shared_ptr<GraphMemory> GraphMemory::Take(Context& context, uint64_t size) {
  Device& device = *context.device;
  std::shared_ptr<Physical> physical = device.memory.Take(size);
  if (physical == nullptr) return nullptr;
  const uint64_t mapped = physical->size();
  const Address address = ReserveAddresses(mapped, kGranule);
  if (address == 0) return nullptr;
  physical->Map(address, 0, mapped, PROT_READ | PROT_WRITE);
  driver().allocations.Add({.address = address,
                            .size = size,
                            .family = Family::kGraph,
                            .device = device.ordinal,
                            .context = &context,
                            .physical = std::move(physical)});
  device.graph_bytes += mapped;
  device.graph_high = std::max(device.graph_high, device.graph_bytes);
  return std::shared_ptr<GraphMemory>(new GraphMemory(device, address, mapped));
}

GraphMemory::~GraphMemory() {
  FreeAddresses(address_, mapped_);
  driver().allocations.Remove(address_, "the end of its graph");
  device_.graph_bytes -= mapped_;
}

Node* AddNode(Graph& graph, Node node) {
  node.graph = &graph;
  Node* const added = driver().nodes.Add(std::make_unique<Node>(std::move(node)));
  graph.nodes.push_back(added);
  return added;
}

void DestroyGraph(Graph& graph) {
  Driver& state = driver();
  for (Node* const node : graph.nodes) {
    if (node->child != nullptr) DestroyGraph(*node->child);
    node->kept = nullptr;  // the node itself is remembered for a while
    node->work = nullptr;
    state.nodes.Remove(node);
  }
  graph.nodes.clear();
  const auto objects = std::move(graph.user_objects);
  graph.user_objects.clear();
  state.graphs.Remove(&graph);
  ReleaseAll(objects);
}

void RetainAll(const std::map<UserObject*, unsigned>& objects) {
  for (const auto& [object, count] : objects) object->references += count;
}

void ReleaseAll(std::map<UserObject*, unsigned> objects) {
  for (const auto& [object, count] : objects) {
    object->references -= std::min(object->references, count);
    if (object->references != 0) continue;
    const CUhostFn destroy = object->destroy;
    void* const argument = object->object;
    driver().user_objects.Remove(object);
    const Unlocked unlocked;
    destroy(argument);
  }
}

std::vector<Node*> InOrder(const Graph& graph) {
  std::unordered_map<const Node*, size_t> missing;
  std::unordered_map<const Node*, std::vector<Node*>> followers;
  std::vector<Node*> order;
  for (Node* const node : graph.nodes) {
    missing[node] = node->dependencies.size();
    for (const Node* const dependency : node->dependencies) followers[dependency].push_back(node);
    if (node->dependencies.empty()) order.push_back(node);
  }
  for (size_t i = 0; i < order.size(); ++i) {
    for (Node* const follower : followers[order[i]]) {
      if (--missing[follower] == 0) order.push_back(follower);
    }
  }
  return order;
}

}  // namespace fake_cuda
