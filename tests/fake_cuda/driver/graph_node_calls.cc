// Nodes of graphs that a program builds by hand.
#include <algorithm>

#include "copies.h"
#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "graph_access.h"
#include "misuse.h"
#include "stream.h"

namespace fake_cuda {
namespace {

CUresult Add(CUgraphNode* out, CUgraph handle, const CUgraphNode* dependencies, size_t count, Node node) {
  if (out == nullptr || (dependencies == nullptr && count != 0)) return CUDA_ERROR_INVALID_VALUE;
  return WithGraph(handle, [&](Graph& graph) {
    for (size_t i = 0; i < count; ++i) {
      Node* const dependency = driver().nodes.Find(dependencies[i]);
      if (dependency == nullptr || dependency->graph != &graph) return CUDA_ERROR_INVALID_VALUE;
      node.dependencies.push_back(dependency);
    }
    return *out = HandleOf(AddNode(graph, std::move(node))), CUDA_SUCCESS;
  });
}

CUresult Connect(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to, size_t count) {
  if ((from == nullptr || to == nullptr) && count != 0) return CUDA_ERROR_INVALID_VALUE;
  return WithGraph(handle, [&](Graph& graph) {
    for (size_t i = 0; i < count; ++i) {
      Node* const first = driver().nodes.Find(from[i]);
      Node* const second = driver().nodes.Find(to[i]);
      if (first == nullptr || second == nullptr || first->graph != &graph || second->graph != &graph) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      auto& dependencies = second->dependencies;
      if (std::find(dependencies.begin(), dependencies.end(), first) != dependencies.end())
        return CUDA_ERROR_INVALID_VALUE;
      dependencies.push_back(first);
    }
    return CUDA_SUCCESS;
  });
}

}  // namespace

CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* type) {
  if (type == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithNode(handle, [&](Node& node) { return *type = node.type, CUDA_SUCCESS; });
}

CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                   const CUgraphEdgeData*, size_t count) {
  return Connect(graph, from, to, count);
}
CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to, size_t count) {
  return Connect(graph, from, to, count);
}

CUresult cuGraphDestroyNode(CUgraphNode handle) {
  return WithNode(handle, [&](Node& node) {
    std::erase(node.graph->nodes, &node);
    for (Node* const other : node.graph->nodes) std::erase(other->dependencies, &node);
    if (node.child != nullptr) DestroyGraph(*node.child);
    node.kept = nullptr;
    node.work = nullptr;
    return driver().nodes.Remove(&node), CUDA_SUCCESS;
  });
}

CUresult cuGraphAddEmptyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count) {
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_EMPTY});
}

CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                 const CUDA_KERNEL_NODE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Node node{.type = CU_GRAPH_NODE_TYPE_KERNEL, .kernel = *params};
  node.kernel.kernelParams = nullptr;  // the caller's, gone when it is read
  node.kernel.extra = nullptr;
  return Add(out, graph, dependencies, count, std::move(node));
}

CUresult cuGraphAddKernelNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Node node{.type = CU_GRAPH_NODE_TYPE_KERNEL};
  node.kernel.func = params->func;
  node.kernel.gridDimX = params->gridDimX;
  node.kernel.gridDimY = params->gridDimY;
  node.kernel.gridDimZ = params->gridDimZ;
  node.kernel.blockDimX = params->blockDimX;
  node.kernel.blockDimY = params->blockDimY;
  node.kernel.blockDimZ = params->blockDimZ;
  node.kernel.sharedMemBytes = params->sharedMemBytes;
  return Add(out, graph, dependencies, count, std::move(node));
}

CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithNode(handle, [&](Node& node) {
    if (node.type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
    return *params = node.kernel, CUDA_SUCCESS;
  });
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithNode(handle, [&](Node& node) {
    if (node.type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
    const CUDA_KERNEL_NODE_PARAMS& from = node.kernel;
    *params = {from.func,      from.gridDimX,  from.gridDimY,       from.gridDimZ, from.blockDimX,
               from.blockDimY, from.blockDimZ, from.sharedMemBytes, nullptr,       nullptr};
    return CUDA_SUCCESS;
  });
}

CUresult cuGraphAddHostNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                            const CUDA_HOST_NODE_PARAMS* params) {
  if (params == nullptr || params->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto work = [function = params->fn, data = params->userData] { function(data); };
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_HOST, .work = work});
}

CUresult cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              const CUDA_MEMCPY3D* params, CUcontext) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::function<void()> work;
  if (const CUresult result = Prepare(*params, work); result != CUDA_SUCCESS) return result;
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_MEMCPY, .work = std::move(work)});
}

CUresult cuGraphAddMemsetNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              const CUDA_MEMSET_NODE_PARAMS* params, CUcontext) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Fill fill{params->dst, params->pitch, params->value, params->elementSize, params->width, params->height};
  if (const CUresult result = Check(fill); result != CUDA_SUCCESS) return result;
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_MEMSET, .work = [fill] { fill.Run(); }});
}

CUresult cuGraphAddMemAllocNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                CUDA_MEM_ALLOC_NODE_PARAMS* params) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (params == nullptr || params->bytesize == 0) return CUDA_ERROR_INVALID_VALUE;
  std::shared_ptr<GraphMemory> memory = GraphMemory::Take(*context, params->bytesize);
  if (memory == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  params->dptr = memory->address();
  Node node{.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC, .kept = std::move(memory), .address = params->dptr};
  return Add(out, graph, dependencies, count, std::move(node));
}

CUresult cuGraphAddMemFreeNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                               CUdeviceptr address) {
  const Allocation* const allocation = driver().allocations.At(address);
  if (allocation == nullptr || allocation->family != Family::kGraph) return CUDA_ERROR_INVALID_VALUE;
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .address = address});
}

CUresult cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                  CUgraph child) {
  return WithGraph(child, [&](Graph& original) {
    Graph* const copy = CloneGraph(original);
    copy->child = true;
    const CUresult result = Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_GRAPH, .child = copy});
    if (result != CUDA_SUCCESS) DestroyGraph(*copy);
    return result;
  });
}

// All work is done in order, so that events inside graphs have nothing to wait for.
CUresult cuGraphAddEventRecordNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                   CUevent event_handle) {
  Event* event = nullptr;
  if (const CUresult result = FindEvent(event_handle, event); result != CUDA_SUCCESS) return result;
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD});
}

CUresult cuGraphAddEventWaitNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                                 CUevent event_handle) {
  Event* event = nullptr;
  if (const CUresult result = FindEvent(event_handle, event); result != CUDA_SUCCESS) return result;
  return Add(out, graph, dependencies, count, {.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT});
}

}  // namespace fake_cuda
