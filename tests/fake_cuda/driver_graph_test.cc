// Capture and graphs of the fake driver.
#include <thread>

#include "driver_test.h"

namespace fake_cuda_test {
namespace {

class Graphs : public Driver {
 protected:
  CUstreamCaptureStatus Status(CUstream stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    EXPECT_CU(CU(cuStreamIsCapturing)(stream, &status));
    return status;
  }
  void Begin(CUstream stream, CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL) {
    EXPECT_CU(CU(cuStreamBeginCapture)(stream, mode));
  }
  CUgraph End(CUstream stream, CUresult expected = CUDA_SUCCESS) {
    CUgraph graph = nullptr;
    EXPECT_EQ(expected, CU(cuStreamEndCapture)(stream, &graph));
    return graph;
  }
  size_t Nodes(CUgraph graph) {
    size_t count = 0;
    EXPECT_CU(CU(cuGraphGetNodes)(graph, nullptr, &count));
    return count;
  }
  CUgraphExec Instantiate(CUgraph graph) {
    CUgraphExec exec = nullptr;
    EXPECT_CU(CU(cuGraphInstantiate)(&exec, graph, 0));
    return exec;
  }
};

TEST_F(Graphs, DoWhatWasCapturedWhenTheyAreLaunched) {
  const CUstream stream = NewStream();
  const CUdeviceptr address = Allocate(8);
  int calls = 0;
  Begin(stream);
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_ACTIVE, Status(stream));
  EXPECT_CU(CU(cuMemsetD32Async)(address, 5, 1, stream));
  EXPECT_CU(CU(cuMemcpyDtoDAsync)(address + 4, address, 4, stream));
  EXPECT_CU(CU(cuLaunchHostFunc)(
      stream, [](void* count) { ++*static_cast<int*>(count); }, &calls));
  EXPECT_EQ(0, Host(address)[0]);
  const CUgraph graph = End(stream);
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_NONE, Status(stream));
  EXPECT_EQ(3u, Nodes(graph));
  const CUgraphExec exec = Instantiate(graph);
  EXPECT_CU(CU(cuGraphDestroy)(graph));
  EXPECT_EQ(0, calls);
  EXPECT_CU(CU(cuGraphLaunch)(exec, stream));
  EXPECT_CU(CU(cuGraphLaunch)(exec, stream));
  EXPECT_EQ(2, calls);
  EXPECT_EQ(5, Host(address)[0]);
  EXPECT_EQ(5, Host(address)[1]);
  EXPECT_CU(CU(cuGraphExecDestroy)(exec));
  EXPECT_MISUSE(CU(cuGraphLaunch)(exec, stream), "the executable graph was destroyed before");
  EXPECT_MISUSE(CU(cuGraphDestroy)(graph), "the graph was destroyed before");
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Graphs, AreCapturedAcrossStreamsThatEventsJoin) {
  const CUstream stream = NewStream(), other = NewStream();
  const CUdeviceptr address = Allocate(64);
  const CUevent fork = NewEvent(), join = NewEvent();
  Begin(stream);
  EXPECT_CU(CU(cuMemsetD8Async)(address, 1, 4, stream));
  EXPECT_CU(CU(cuEventRecord)(fork, stream));
  EXPECT_CU(CU(cuStreamWaitEvent)(other, fork, 0));
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_ACTIVE, Status(other));
  EXPECT_CU(CU(cuMemsetD8Async)(address + 8, 1, 4, other));
  EXPECT_CU(CU(cuMemsetD8Async)(address + 16, 1, 4, stream));
  EXPECT_CU(CU(cuEventRecord)(join, other));
  EXPECT_CU(CU(cuStreamWaitEvent)(stream, join, 0));
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  cuuint64_t id = 0, other_id = 0;
  CUgraph seen = nullptr;
  const CUgraphNode* nodes = nullptr;
  size_t count = 0;
  EXPECT_CU(CU(cuStreamGetCaptureInfo)(stream, &status, &id, &seen, &nodes, nullptr, &count));
  EXPECT_EQ(2u, count);
  EXPECT_CU(CU(cuStreamGetCaptureInfo)(other, &status, &other_id, nullptr, nullptr, nullptr, nullptr));
  EXPECT_EQ(id, other_id);
  const CUgraph graph = End(stream);
  EXPECT_EQ(seen, graph);
  EXPECT_EQ(3u, Nodes(graph));
  size_t roots = 0, edges = 0;
  EXPECT_CU(CU(cuGraphGetRootNodes)(graph, nullptr, &roots));
  EXPECT_EQ(1u, roots);
  EXPECT_CU(CU(cuGraphGetEdges)(graph, nullptr, nullptr, nullptr, &edges));
  EXPECT_EQ(2u, edges);
  EXPECT_CU(CU(cuGraphDestroy)(graph));
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Graphs, AreLostIfAStreamIsNotJoined) {
  const CUstream stream = NewStream(), other = NewStream();
  const CUdeviceptr address = Allocate(64);
  const CUevent fork = NewEvent();
  Begin(stream);
  EXPECT_CU(CU(cuEventRecord)(fork, stream));
  EXPECT_CU(CU(cuStreamWaitEvent)(other, fork, 0));
  EXPECT_CU(CU(cuMemsetD8Async)(address, 1, 4, other));
  EXPECT_EQ(nullptr, End(stream, CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_NONE, Status(other));
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Graphs, CapturedGloballyForbidAllocationsOnAnyThread) {
  const CUstream stream = NewStream();
  CUdeviceptr address = 0;
  Begin(stream);
  std::thread([&] {
    EXPECT_CU(CU(cuCtxSetCurrent)(context));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuMemAlloc)(&address, 100));
  }).join();
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_INVALIDATED, Status(stream));
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, CU(cuMemsetD8Async)(Allocate(4), 1, 4, stream));
  EXPECT_EQ(nullptr, End(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
}

TEST_F(Graphs, CapturedByThreadForbidAllocationsOnThatThreadOnly) {
  const CUstream stream = NewStream();
  CUdeviceptr address = 0;
  Begin(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  std::thread([&] {
    EXPECT_CU(CU(cuCtxSetCurrent)(context));
    EXPECT_CU(CU(cuMemAlloc)(&address, 100));
    EXPECT_CU(CU(cuMemFree)(address));
  }).join();
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_ACTIVE, Status(stream));
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuMemAlloc)(&address, 100));
  EXPECT_EQ(nullptr, End(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
}

TEST_F(Graphs, AllowAllocationsToAThreadThatIsRelaxed) {
  const CUstream stream = NewStream();
  Begin(stream);
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  EXPECT_CU(CU(cuThreadExchangeStreamCaptureMode)(&mode));
  EXPECT_EQ(CU_STREAM_CAPTURE_MODE_GLOBAL, mode);
  const CUdeviceptr address = Allocate(100);
  const CUevent event = NewEvent();
  EXPECT_CU(CU(cuEventQuery)(event));
  EXPECT_CU(CU(cuThreadExchangeStreamCaptureMode)(&mode));
  EXPECT_EQ(CU_STREAM_CAPTURE_MODE_RELAXED, mode);
  EXPECT_CU(CU(cuGraphDestroy)(End(stream)));
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Graphs, AreSpoiltByWaitingForWhatIsCaptured) {
  const CUstream stream = NewStream();
  Begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuStreamSynchronize)(stream));
  End(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  Begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuCtxSynchronize)());
  End(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  const CUevent event = NewEvent();
  Begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_CU(CU(cuEventRecord)(event, stream));
  EXPECT_EQ(CUDA_ERROR_CAPTURED_EVENT, CU(cuEventQuery)(event));
  End(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

TEST_F(Graphs, OfBlockingStreamsForbidTheLegacyStream) {
  const CUstream stream = NewStream(CU_STREAM_DEFAULT);
  const CUdeviceptr address = Allocate(4);
  Begin(stream);
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, CU(cuStreamIsCapturing)(nullptr, &status));
  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_ACTIVE, Status(stream));  // to ask does no harm
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, CU(cuMemsetD8)(address, 0, 4));
  End(stream, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuStreamBeginCapture)(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL));
  EXPECT_CU(CU(cuMemFree)(address));
}

TEST_F(Graphs, EndWhereAndByWhomTheyWereBegun) {
  const CUstream stream = NewStream(), other = NewStream();
  const CUevent fork = NewEvent();
  End(stream, CUDA_ERROR_ILLEGAL_STATE);
  Begin(stream);
  EXPECT_CU(CU(cuEventRecord)(fork, stream));
  EXPECT_CU(CU(cuStreamWaitEvent)(other, fork, 0));
  End(other, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  std::thread([&] { End(stream, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD); }).join();
  EXPECT_CU(CU(cuGraphDestroy)(End(stream)));
}

TEST(GraphMisuse, StopsTheProgramIfThatIsAskedFor) {
  const auto allocate_in_capture = [] {
    setenv("FAKE_CUDA_CAPTURE_MISUSE", "abort", 1);
    Start();
    CUstream stream = nullptr;
    EXPECT_CU(CU(cuStreamCreate)(&stream, CU_STREAM_NON_BLOCKING));
    EXPECT_CU(CU(cuStreamBeginCapture)(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CUdeviceptr address = 0;
    CU(cuMemAlloc)(&address, 1);
  };
  EXPECT_MISUSE(allocate_in_capture(), "cuMemAlloc_v2: the call is not allowed while a stream is captured");
}

TEST_F(Graphs, OwnTheMemoryThatIsAllocatedInThem) {
  const CUstream stream = NewStream();
  const size_t before = Free();
  CUdeviceptr address = 0;
  Begin(stream);
  EXPECT_CU(CU(cuMemAllocAsync)(&address, 5 * kMiB, stream));
  EXPECT_CU(CU(cuMemsetD8Async)(address, 7, 5 * kMiB, stream));
  EXPECT_CU(CU(cuMemFreeAsync)(address, stream));
  const CUgraph graph = End(stream);
  EXPECT_EQ(3u, Nodes(graph));
  const CUgraphExec exec = Instantiate(graph);
  EXPECT_CU(CU(cuGraphDestroy)(graph));
  EXPECT_CU(CU(cuGraphLaunch)(exec, stream));
  EXPECT_EQ(before - 6 * kMiB, Free());
  cuuint64_t used = 0;
  EXPECT_CU(CU(cuDeviceGetGraphMemAttribute)(0, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used));
  EXPECT_EQ(6 * kMiB, used);
  EXPECT_CU(CU(cuGraphExecDestroy)(exec));
  EXPECT_EQ(before, Free());
}

TEST_F(Graphs, KeepUserObjectsAsLongAsTheyLive) {
  int destroyed = 0;
  CUuserObject object = nullptr;
  const CUhostFn destroy = [](void* count) { ++*static_cast<int*>(count); };
  ASSERT_CU(CU(cuUserObjectCreate)(&object, &destroyed, destroy, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
  CUgraph graph = nullptr;
  ASSERT_CU(CU(cuGraphCreate)(&graph, 0));
  EXPECT_CU(CU(cuGraphRetainUserObject)(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE));
  const CUgraphExec exec = Instantiate(graph);
  EXPECT_CU(CU(cuGraphDestroy)(graph));
  EXPECT_EQ(0, destroyed);
  EXPECT_CU(CU(cuGraphExecDestroy)(exec));
  EXPECT_EQ(1, destroyed);
}

TEST_F(Graphs, BuiltByHandRunInTheOrderOfTheirEdges) {
  static std::vector<int> order;
  order.clear();
  CUgraph graph = nullptr;
  ASSERT_CU(CU(cuGraphCreate)(&graph, 0));
  CUgraphNode nodes[3];
  int numbers[] = {0, 1, 2};
  for (int i = 0; i < 3; ++i) {
    CUDA_HOST_NODE_PARAMS params = {};
    params.fn = [](void* number) { order.push_back(*static_cast<int*>(number)); };
    params.userData = &numbers[i];
    ASSERT_CU(CU(cuGraphAddHostNode)(&nodes[i], graph, nullptr, 0, &params));
  }
  const CUgraphNode from[] = {nodes[2], nodes[1]}, to[] = {nodes[1], nodes[0]};
  EXPECT_CU(CU(cuGraphAddDependencies)(graph, from, to, nullptr, 2));
  CUgraph parent = nullptr;
  ASSERT_CU(CU(cuGraphCreate)(&parent, 0));
  CUgraphNode child = nullptr;
  EXPECT_CU(CU(cuGraphAddChildGraphNode)(&child, parent, nullptr, 0, graph));
  const CUgraphExec exec = Instantiate(parent);
  EXPECT_CU(CU(cuGraphDestroy)(graph));
  EXPECT_CU(CU(cuGraphDestroy)(parent));
  EXPECT_CU(CU(cuGraphLaunch)(exec, nullptr));
  EXPECT_THAT(order, testing::ElementsAre(2, 1, 0));
  EXPECT_CU(CU(cuGraphExecDestroy)(exec));
}

TEST_F(Graphs, WithACircleAreRefused) {
  CUgraph graph = nullptr;
  ASSERT_CU(CU(cuGraphCreate)(&graph, 0));
  CUgraphNode first = nullptr, second = nullptr;
  ASSERT_CU(CU(cuGraphAddEmptyNode)(&first, graph, nullptr, 0));
  ASSERT_CU(CU(cuGraphAddEmptyNode)(&second, graph, &first, 1));
  EXPECT_CU(CU(cuGraphAddDependencies)(graph, &second, &first, nullptr, 1));
  CUgraphExec exec = nullptr;
  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuGraphInstantiate)(&exec, graph, 0));
  EXPECT_CU(CU(cuGraphDestroy)(graph));
}

}  // namespace
}  // namespace fake_cuda_test
