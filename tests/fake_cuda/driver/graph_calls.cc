// Graphs as a whole: made, looked at, made executable, launched.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "graph_access.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

// Copies `all` out, as the calls do that first ask for the count.
template <typename Out>
CUresult List(const std::vector<Node*>& all, Out* out, size_t* count) {
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (out != nullptr) {
    for (size_t i = 0; i < *count; ++i) out[i] = i < all.size() ? HandleOf(all[i]) : nullptr;
    *count = std::min(*count, all.size());
  } else {
    *count = all.size();
  }
  return CUDA_SUCCESS;
}

CUresult CheckOrder(const Graph& graph) {
  return InOrder(graph).size() == graph.nodes.size() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// What the graph does, children in the place of their nodes.
void Collect(const Graph& graph, GraphExec& exec) {
  for (const Node* const node : InOrder(graph)) {
    if (node->child != nullptr) Collect(*node->child, exec);
    if (node->work) exec.works.push_back(node->work);
    if (node->kept != nullptr) exec.kept.push_back(node->kept);
  }
}

CUresult Instantiate(CUgraphExec* out, CUgraph handle, unsigned long long flags) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithGraph(handle, [&](Graph& graph) {
    if (const CUresult order = CheckOrder(graph); order != CUDA_SUCCESS) return order;
    auto exec = std::make_unique<GraphExec>();
    exec->context = context;
    exec->flags = flags;
    Collect(graph, *exec);
    exec->user_objects = graph.user_objects;
    RetainAll(exec->user_objects);
    *out = reinterpret_cast<CUgraphExec>(driver().execs.Add(std::move(exec)));
    return CUDA_SUCCESS;
  });
}

template <typename Use>
CUresult WithExec(CUgraphExec handle, Use use) {
  GraphExec* const exec = driver().execs.Find(handle);
  if (exec != nullptr) return use(*exec);
  if (!driver().execs.Died(handle)) return CUDA_ERROR_INVALID_VALUE;
  return Misuse(CUDA_ERROR_INVALID_VALUE, "the executable graph was destroyed before");
}

Graph* Clone(const Graph& original) {
  Graph* const copy = driver().graphs.Add(std::make_unique<Graph>());
  std::map<const Node*, Node*> copies;
  for (const Node* const node : original.nodes) {
    Node clone = *node;
    if (node->child != nullptr) {
      clone.child = Clone(*node->child);
      clone.child->child = true;
    }
    copies[node] = AddNode(*copy, std::move(clone));
  }
  for (Node* const node : copy->nodes) {
    for (Node*& dependency : node->dependencies) dependency = copies.at(dependency);
  }
  copy->user_objects = original.user_objects;
  RetainAll(copy->user_objects);
  return copy;
}

CUresult Edges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data, size_t* count) {
  return WithGraph(handle, [&](Graph& graph) {
    std::vector<Node*> heads, tails;
    for (Node* const node : graph.nodes) {
      for (Node* const dependency : node->dependencies) {
        heads.push_back(dependency);
        tails.push_back(node);
      }
    }
    if (count == nullptr || (from == nullptr) != (to == nullptr)) return CUDA_ERROR_INVALID_VALUE;
    size_t room = *count;
    if (data != nullptr && from != nullptr) std::fill(data, data + room, CUgraphEdgeData{});
    List(heads, from, &room);
    return List(tails, to, count);
  });
}

}  // namespace

Graph* CloneGraph(const Graph& original) { return Clone(original); }

CUresult cuGraphCreate(CUgraph* out, unsigned flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  *out = reinterpret_cast<CUgraph>(driver().graphs.Add(std::make_unique<Graph>()));
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph handle) {
  return WithGraph(handle, [](Graph& graph) {
    if (graph.child) return CUDA_ERROR_INVALID_VALUE;  // its node owns it
    return DestroyGraph(graph), CUDA_SUCCESS;
  });
}

CUresult cuGraphClone(CUgraph* out, CUgraph original) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithGraph(original,
                   [&](Graph& graph) { return *out = reinterpret_cast<CUgraph>(Clone(graph)), CUDA_SUCCESS; });
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
  return Instantiate(exec, graph, flags);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec* exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = Instantiate(exec, graph, params->flags);
  params->hErrNode_out = nullptr;
  params->result_out = result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
  return result;
}

CUresult cuGraphInstantiate_v2(CUgraphExec* exec, CUgraph graph, CUgraphNode* error_node, char* log, size_t room) {
  if (error_node != nullptr) *error_node = nullptr;
  if (log != nullptr && room != 0) *log = '\0';
  return Instantiate(exec, graph, 0);
}

CUresult cuGraphInstantiate(CUgraphExec* exec, CUgraph graph, CUgraphNode* error_node, char* log, size_t room) {
  return fake_cuda::cuGraphInstantiate_v2(exec, graph, error_node, log, room);
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  Stream* stream = nullptr;
  if (const CUresult result = FindStream(stream_handle, stream); result != CUDA_SUCCESS) return result;
  return WithExec(handle, [&](GraphExec& exec) {
    // A copy: a host function may destroy the executable graph.
    const auto run = [works = exec.works] {
      for (const std::function<void()>& work : works) work();
    };
    return Submit(*stream, {.type = CU_GRAPH_NODE_TYPE_GRAPH, .work = run});
  });
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
  Stream* stream = nullptr;
  if (const CUresult result = FindStream(stream_handle, stream); result != CUDA_SUCCESS) return result;
  return WithExec(handle, [](GraphExec&) { return CUDA_SUCCESS; });
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return WithExec(handle, [](GraphExec& exec) {
    const auto objects = std::move(exec.user_objects);
    exec.works.clear();
    exec.kept.clear();
    driver().execs.Remove(&exec);
    ReleaseAll(objects);
    return CUDA_SUCCESS;
  });
}

CUresult cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t* flags) {
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithExec(handle, [&](GraphExec& exec) { return *flags = exec.flags, CUDA_SUCCESS; });
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  return WithGraph(handle, [&](Graph& graph) { return List(graph.nodes, nodes, count); });
}

CUresult cuGraphGetRootNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  return WithGraph(handle, [&](Graph& graph) {
    std::vector<Node*> roots;
    for (Node* const node : graph.nodes) {
      if (node->dependencies.empty()) roots.push_back(node);
    }
    return List(roots, nodes, count);
  });
}

CUresult cuGraphGetEdges_v2(CUgraph graph, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data, size_t* count) {
  return Edges(graph, from, to, data, count);
}
CUresult cuGraphGetEdges(CUgraph graph, CUgraphNode* from, CUgraphNode* to, size_t* count) {
  return Edges(graph, from, to, nullptr, count);
}

CUresult cuGraphNodeGetDependencies_v2(CUgraphNode handle, CUgraphNode* nodes, CUgraphEdgeData* data, size_t* count) {
  return WithNode(handle, [&](Node& node) {
    if (data != nullptr && count != nullptr) std::fill(data, data + *count, CUgraphEdgeData{});
    return List(node.dependencies, nodes, count);
  });
}
CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode* nodes, size_t* count) {
  return fake_cuda::cuGraphNodeGetDependencies_v2(node, nodes, nullptr, count);
}

CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode handle, CUgraphNode* nodes, CUgraphEdgeData* data, size_t* count) {
  return WithNode(handle, [&](Node& node) {
    std::vector<Node*> dependents;
    for (Node* const other : node.graph->nodes) {
      const auto& dependencies = other->dependencies;
      if (std::find(dependencies.begin(), dependencies.end(), &node) != dependencies.end()) dependents.push_back(other);
    }
    if (data != nullptr && count != nullptr) std::fill(data, data + *count, CUgraphEdgeData{});
    return List(dependents, nodes, count);
  });
}
CUresult cuGraphNodeGetDependentNodes(CUgraphNode node, CUgraphNode* nodes, size_t* count) {
  return fake_cuda::cuGraphNodeGetDependentNodes_v2(node, nodes, nullptr, count);
}

CUresult cuGraphDebugDotPrint(CUgraph handle, const char* path, unsigned) {
  if (path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithGraph(handle, [&](Graph& graph) {
    std::FILE* const file = std::fopen(path, "w");
    if (file == nullptr) return CUDA_ERROR_OPERATING_SYSTEM;
    fmt::print(file, "digraph graph_ {{\n");
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      fmt::print(file, "  n{} [label=\"type {}\"];\n", fmt::ptr(graph.nodes[i]), int(graph.nodes[i]->type));
      for (const Node* const before : graph.nodes[i]->dependencies) {
        fmt::print(file, "  n{} -> n{};\n", fmt::ptr(before), fmt::ptr(graph.nodes[i]));
      }
    }
    fmt::print(file, "}}\n");
    std::fclose(file);
    return CUDA_SUCCESS;
  });
}

CUresult cuUserObjectCreate(CUuserObject* out, void* object, CUhostFn destroy, unsigned references, unsigned flags) {
  if (out == nullptr || destroy == nullptr || references == 0 || flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto made = std::make_unique<UserObject>(UserObject{object, destroy, references});
  *out = reinterpret_cast<CUuserObject>(driver().user_objects.Add(std::move(made)));
  return CUDA_SUCCESS;
}

CUresult cuUserObjectRetain(CUuserObject handle, unsigned count) {
  UserObject* const object = driver().user_objects.Find(handle);
  if (object == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  return object->references += count, CUDA_SUCCESS;
}

CUresult cuUserObjectRelease(CUuserObject handle, unsigned count) {
  UserObject* const object = driver().user_objects.Find(handle);
  if (object == nullptr || count == 0 || count > object->references) return CUDA_ERROR_INVALID_VALUE;
  return ReleaseAll({{object, count}}), CUDA_SUCCESS;
}

CUresult cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned count, unsigned flags) {
  UserObject* const object = driver().user_objects.Find(handle);
  if (object == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  return WithGraph(graph_handle, [&](Graph& graph) {
    if ((flags & CU_GRAPH_USER_OBJECT_MOVE) == 0) object->references += count;
    return graph.user_objects[object] += count, CUDA_SUCCESS;
  });
}

CUresult cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle, unsigned count) {
  UserObject* const object = driver().user_objects.Find(handle);
  return WithGraph(graph_handle, [&](Graph& graph) {
    const auto found = graph.user_objects.find(object);
    if (object == nullptr || found == graph.user_objects.end() || found->second < count)
      return CUDA_ERROR_INVALID_VALUE;
    if ((found->second -= count) == 0) graph.user_objects.erase(found);
    return ReleaseAll({{object, count}}), CUDA_SUCCESS;
  });
}

}  // namespace fake_cuda
