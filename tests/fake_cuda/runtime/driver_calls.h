// The driver calls that this runtime makes, by name without "cu". A version is the one to ask cuGetProcAddress for:
// names and versions are those of cudaTypedefs.h (CUDA 13.0), and driver.cc has the compiler compare the types.
#ifndef GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_DRIVER_CALLS_H_
#define GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_DRIVER_CALLS_H_

// CALL(name, version)
#define FAKE_CUDART_DRIVER_CALLS(CALL)                           \
  CALL(Init, 2000)                                               \
  CALL(DriverGetVersion, 2020)                                   \
  CALL(GetErrorString, 6000)                                     \
  CALL(DeviceGet, 2000)                                          \
  CALL(DeviceGetCount, 2000)                                     \
  CALL(DeviceGetName, 2000)                                      \
  CALL(DeviceTotalMem, 3020)                                     \
  CALL(DeviceGetUuid, 11040)                                     \
  CALL(DeviceGetAttribute, 2000)                                 \
  CALL(DeviceGetPCIBusId, 4010)                                  \
  CALL(DeviceGetByPCIBusId, 4010)                                \
  CALL(DeviceCanAccessPeer, 4000)                                \
  CALL(DevicePrimaryCtxRetain, 7000)                             \
  CALL(DevicePrimaryCtxReset, 11000)                             \
  CALL(CtxGetCurrent, 4000)                                      \
  CALL(CtxSetCurrent, 4000)                                      \
  CALL(CtxGetDevice, 2000)                                       \
  CALL(CtxSynchronize, 2000)                                     \
  CALL(CtxGetStreamPriorityRange, 5050)                          \
  CALL(CtxGetLimit, 3010)                                        \
  CALL(CtxSetLimit, 3010)                                        \
  CALL(CtxEnablePeerAccess, 4000)                                \
  CALL(CtxDisablePeerAccess, 4000)                               \
  CALL(MemAlloc, 3020)                                           \
  CALL(MemAllocPitch, 3020)                                      \
  CALL(MemAllocManaged, 6000)                                    \
  CALL(MemFree, 3020)                                            \
  CALL(MemGetInfo, 3020)                                         \
  CALL(MemHostAlloc, 2020)                                       \
  CALL(MemFreeHost, 2000)                                        \
  CALL(MemHostRegister, 6050)                                    \
  CALL(MemHostUnregister, 4000)                                  \
  CALL(MemHostGetDevicePointer, 3020)                            \
  CALL(MemHostGetFlags, 2030)                                    \
  CALL(PointerGetAttributes, 7000)                               \
  CALL(DeviceGetDefaultMemPool, 11020)                           \
  CALL(DeviceGetMemPool, 11020)                                  \
  CALL(DeviceSetMemPool, 11020)                                  \
  CALL(MemPoolCreate, 11020)                                     \
  CALL(MemPoolDestroy, 11020)                                    \
  CALL(MemPoolTrimTo, 11020)                                     \
  CALL(MemPoolSetAttribute, 11020)                               \
  CALL(MemPoolGetAttribute, 11020)                               \
  CALL(MemPoolSetAccess, 11020)                                  \
  CALL(MemPoolGetAccess, 11020)                                  \
  CALL(MemPoolExportToShareableHandle, 11020)                    \
  CALL(MemPoolImportFromShareableHandle, 11020)                  \
  CALL(MemPoolExportPointer, 11020)                              \
  CALL(MemPoolImportPointer, 11020)                              \
  CALL(MemGetDefaultMemPool, 13000)                              \
  CALL(MemGetMemPool, 13000)                                     \
  CALL(MemSetMemPool, 13000)                                     \
  CALL(MemAdvise, 12020)                                         \
  CALL(DeviceGetGraphMemAttribute, 11040)                        \
  CALL(DeviceSetGraphMemAttribute, 11040)                        \
  CALL(DeviceGraphMemTrim, 11040)                                \
  CALL(IpcGetMemHandle, 4010)                                    \
  CALL(IpcOpenMemHandle, 11000)                                  \
  CALL(IpcCloseMemHandle, 4010)                                  \
  CALL(IpcGetEventHandle, 4010)                                  \
  CALL(IpcOpenEventHandle, 4010)                                 \
  CALL(StreamCreate, 2000)                                       \
  CALL(StreamCreateWithPriority, 5050)                           \
  CALL(StreamDestroy, 4000)                                      \
  CALL(ThreadExchangeStreamCaptureMode, 10010)                   \
  CALL(EventCreate, 2000)                                        \
  CALL(EventDestroy, 4000)                                       \
  CALL(EventQuery, 2000)                                         \
  CALL(EventSynchronize, 2000)                                   \
  CALL(EventElapsedTime, 12080)                                  \
  CALL(GraphCreate, 10000)                                       \
  CALL(GraphClone, 10000)                                        \
  CALL(GraphDestroy, 10000)                                      \
  CALL(GraphInstantiateWithFlags, 11040)                         \
  CALL(GraphAddMemAllocNode, 11040)                              \
  CALL(GraphAddMemFreeNode, 11040)                               \
  CALL(GraphMemAllocNodeGetParams, 11040)                        \
  CALL(GraphMemFreeNodeGetParams, 11040)                         \
  CALL(UserObjectCreate, 11030)                                  \
  CALL(UserObjectRetain, 11030)                                  \
  CALL(UserObjectRelease, 11030)                                 \
  CALL(GraphRetainUserObject, 11030)                             \
  CALL(GraphReleaseUserObject, 11030)                            \
  CALL(GraphExecDestroy, 10000)                                  \
  CALL(GraphGetNodes, 10000)                                     \
  CALL(GraphGetRootNodes, 10000)                                 \
  CALL(GraphGetEdges, 12030)                                     \
  CALL(GraphNodeGetDependencies, 12030)                          \
  CALL(GraphNodeGetType, 10000)                                  \
  CALL(GraphDebugDotPrint, 11030)                                \
  CALL(LibraryLoadData, 12000)                                   \
  CALL(LibraryUnload, 12000)                                     \
  CALL(LibraryGetKernel, 12000)                                  \
  CALL(KernelGetAttribute, 12000)                                \
  CALL(KernelSetAttribute, 12000)                                \
  CALL(KernelSetCacheConfig, 12000)                              \
  CALL(OccupancyMaxActiveBlocksPerMultiprocessorWithFlags, 7000) \
  CALL(DeviceGetP2PAttribute, 8000)

// CALL(name, version, version of the per-thread form, its ending): each twice, with the legacy and with the per-thread
// default stream.
#define FAKE_CUDART_STREAM_CALLS(CALL)                       \
  CALL(Memcpy, 4000, 7000, _ptds)                            \
  CALL(MemcpyHtoD, 3020, 7000, _ptds)                        \
  CALL(MemcpyDtoH, 3020, 7000, _ptds)                        \
  CALL(MemcpyDtoD, 3020, 7000, _ptds)                        \
  CALL(Memcpy2DUnaligned, 3020, 7000, _ptds)                 \
  CALL(MemcpyPeer, 4000, 7000, _ptds)                        \
  CALL(MemsetD8, 3020, 7000, _ptds)                          \
  CALL(MemsetD2D8, 3020, 7000, _ptds)                        \
  CALL(MemcpyAsync, 4000, 7000, _ptsz)                       \
  CALL(MemcpyHtoDAsync, 3020, 7000, _ptsz)                   \
  CALL(MemcpyDtoHAsync, 3020, 7000, _ptsz)                   \
  CALL(MemcpyDtoDAsync, 3020, 7000, _ptsz)                   \
  CALL(Memcpy2DAsync, 3020, 7000, _ptsz)                     \
  CALL(MemcpyPeerAsync, 4000, 7000, _ptsz)                   \
  CALL(MemsetD8Async, 3020, 7000, _ptsz)                     \
  CALL(MemsetD2D8Async, 3020, 7000, _ptsz)                   \
  CALL(MemPrefetchAsync, 12020, 12020, _ptsz)                \
  CALL(MemAllocAsync, 11020, 11020, _ptsz)                   \
  CALL(MemAllocFromPoolAsync, 11020, 11020, _ptsz)           \
  CALL(MemFreeAsync, 11020, 11020, _ptsz)                    \
  CALL(StreamGetPriority, 5050, 7000, _ptsz)                 \
  CALL(StreamGetFlags, 5050, 7000, _ptsz)                    \
  CALL(StreamGetId, 12000, 12000, _ptsz)                     \
  CALL(StreamGetDevice, 12080, 12080, _ptsz)                 \
  CALL(StreamWaitEvent, 3020, 7000, _ptsz)                   \
  CALL(StreamAddCallback, 5000, 7000, _ptsz)                 \
  CALL(StreamQuery, 2000, 7000, _ptsz)                       \
  CALL(StreamSynchronize, 2000, 7000, _ptsz)                 \
  CALL(StreamBeginCapture, 10010, 10010, _ptsz)              \
  CALL(StreamEndCapture, 10000, 10000, _ptsz)                \
  CALL(StreamIsCapturing, 10000, 10000, _ptsz)               \
  CALL(StreamGetCaptureInfo, 12030, 12030, _ptsz)            \
  CALL(StreamUpdateCaptureDependencies, 12030, 12030, _ptsz) \
  CALL(EventRecord, 2000, 7000, _ptsz)                       \
  CALL(EventRecordWithFlags, 11010, 11010, _ptsz)            \
  CALL(LaunchKernel, 4000, 7000, _ptsz)                      \
  CALL(LaunchKernelEx, 11060, 11060, _ptsz)                  \
  CALL(LaunchCooperativeKernel, 9000, 9000, _ptsz)           \
  CALL(LaunchHostFunc, 10000, 10000, _ptsz)                  \
  CALL(GraphLaunch, 10000, 10000, _ptsz)                     \
  CALL(GraphUpload, 11010, 11010, _ptsz)

#endif  // GPULEDGER_TESTS_FAKE_CUDA_RUNTIME_DRIVER_CALLS_H_
