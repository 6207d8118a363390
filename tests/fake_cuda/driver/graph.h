// Graphs: nodes with what they do, and executable copies of them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "driver.h"

namespace fake_cuda {

// Memory of an allocation node, held by the graph and by each executable copy of it.
class GraphMemory {
 public:
  static std::shared_ptr<GraphMemory> Take(Context& context, uint64_t size);  // null: out of memory
  ~GraphMemory();
  Address address() const { return address_; }

 private:
  GraphMemory(Device& device, Address address, uint64_t mapped) : device_(device), address_(address), mapped_(mapped) {}
  Device& device_;
  const Address address_;
  const uint64_t mapped_;
};

struct Node {
  CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
  std::function<void()> work = nullptr;  // null: nothing to do
  CUDA_KERNEL_NODE_PARAMS kernel = {};   // of a kernel node, without its arguments
  std::shared_ptr<void> kept = nullptr;  // what it needs to stay alive
  Address address = 0;                   // of memory nodes
  Graph* child = nullptr;                // owned
  Graph* graph = nullptr;
  std::vector<Node*> dependencies = {};
};

struct Graph {
  std::vector<Node*> nodes;  // in the order in which they were added
  std::map<UserObject*, unsigned> user_objects;
  bool child = false;  // of a node
};

struct GraphExec {
  Context* context = nullptr;
  unsigned long long flags = 0;
  std::vector<std::function<void()>> works;  // in an order that respects the dependencies
  std::vector<std::shared_ptr<void>> kept;
  std::map<UserObject*, unsigned> user_objects;
};

struct UserObject {
  void* object;
  CUhostFn destroy;
  unsigned references;
};

Node* AddNode(Graph& graph, Node node);
void DestroyGraph(Graph& graph);
void RetainAll(const std::map<UserObject*, unsigned>& objects);
// Calls the destructors of those that nobody holds any more, outside the lock.
void ReleaseAll(std::map<UserObject*, unsigned> objects);

// Nodes in an order that respects the dependencies; shorter than the graph if they form a circle.
std::vector<Node*> InOrder(const Graph& graph);

}  // namespace fake_cuda
