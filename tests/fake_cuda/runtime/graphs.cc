// Graphs as objects: made, asked, destroyed; their memory nodes; and what they keep alive.
#include "state.h"

using namespace fake_cudart;

static_assert(sizeof(cudaMemAllocNodeParams) == sizeof(CUDA_MEM_ALLOC_NODE_PARAMS));

FAKE_CUDART_EXPORT cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned flags) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphCreate(graph, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphClone(cudaGraph_t* clone, cudaGraph_t graph) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphClone(clone, graph)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphDestroy(graph)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                             unsigned long long flags) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.GraphInstantiateWithFlags(executable, graph, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                    unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphExecDestroy(executable)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphGetNodes(graph, nodes, count)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphGetRootNodes(graph, nodes, count)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphGetEdges(cudaGraph_t graph, cudaGraphNode_t* from, cudaGraphNode_t* to,
                                                 cudaGraphEdgeData* edges, size_t* count) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.GraphGetEdges(graph, from, to, reinterpret_cast<CUgraphEdgeData*>(edges), count));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* dependencies,
                                                            cudaGraphEdgeData* edges, size_t* count) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(
        driver.GraphNodeGetDependencies(node, dependencies, reinterpret_cast<CUgraphEdgeData*>(edges), count));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.GraphNodeGetType(node, reinterpret_cast<CUgraphNodeType*>(type)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphDebugDotPrint(cudaGraph_t graph, const char* path, unsigned flags) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.GraphDebugDotPrint(graph, path, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphAddMemAllocNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                                        const cudaGraphNode_t* dependencies, size_t count,
                                                        cudaMemAllocNodeParams* params) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.GraphAddMemAllocNode(node, graph, dependencies, count,
                                                  reinterpret_cast<CUDA_MEM_ALLOC_NODE_PARAMS*>(params)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphAddMemFreeNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                                       const cudaGraphNode_t* dependencies, size_t count,
                                                       void* pointer) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(
        driver.GraphAddMemFreeNode(node, graph, dependencies, count, reinterpret_cast<CUdeviceptr>(pointer)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphMemAllocNodeGetParams(cudaGraphNode_t node, cudaMemAllocNodeParams* params) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.GraphMemAllocNodeGetParams(node, reinterpret_cast<CUDA_MEM_ALLOC_NODE_PARAMS*>(params)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphMemFreeNodeGetParams(cudaGraphNode_t node, void* pointer) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.GraphMemFreeNodeGetParams(node, static_cast<CUdeviceptr*>(pointer)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy,
                                                    unsigned references, unsigned flags) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.UserObjectCreate(object, pointer, destroy, references, flags));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaUserObjectRetain(cudaUserObject_t object, unsigned count) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.UserObjectRetain(object, count)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.UserObjectRelease(object, count)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count,
                                                         unsigned flags) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.GraphRetainUserObject(graph, object, count, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaGraphReleaseUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count) {
  return WithContext(
      [&](const Driver& driver) { return FromDriver(driver.GraphReleaseUserObject(graph, object, count)); });
}
