// From the handles of graphs and nodes to what they mean.
#pragma once

#include "graph.h"
#include "misuse.h"

namespace fake_cuda {

inline CUgraphNode HandleOf(Node* node) { return reinterpret_cast<CUgraphNode>(node); }

template <typename Use>
CUresult WithGraph(CUgraph handle, Use use) {
  Graph* const graph = driver().graphs.Find(handle);
  if (graph != nullptr) return use(*graph);
  if (!driver().graphs.Died(handle)) return CUDA_ERROR_INVALID_VALUE;
  return Misuse(CUDA_ERROR_INVALID_VALUE, "the graph was destroyed before");
}

template <typename Use>
CUresult WithNode(CUgraphNode handle, Use use) {
  Node* const node = driver().nodes.Find(handle);
  if (node != nullptr) return use(*node);
  if (!driver().nodes.Died(handle)) return CUDA_ERROR_INVALID_VALUE;
  return Misuse(CUDA_ERROR_INVALID_VALUE, "the node was destroyed before, or its graph was");
}

Graph* CloneGraph(const Graph& original);

}  // namespace fake_cuda
