# cmake -D BUILD=… -D SCRATCH=… -D SOURCE=… -P run.cmake: install, configure, build, run. The first failure ends it.
cmake_policy(VERSION 3.25)
set(prefix ${SCRATCH}/prefix)
file(REMOVE_RECURSE ${prefix} ${SCRATCH}/build)

function(run)
  list(JOIN ARGN " " text)
  message(STATUS "${text}")
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${SCRATCH}/build -G Ninja -D CMAKE_BUILD_TYPE=Release
    -D CMAKE_C_COMPILER=${CC} -D CMAKE_CXX_COMPILER=${CXX} "-DCMAKE_C_FLAGS=${FLAGS}" "-DCMAKE_CXX_FLAGS=${FLAGS}"
    -D CMAKE_PREFIX_PATH=${prefix} -D WANTED_VERSION=${VERSION} -D CCCL=${CCCL}
    -D CUDA_HEADERS=${CUDA_HEADERS} -D WITH_TORCH=${TORCH} -D GPULEDGER_PYTHON=${TORCH_PYTHON})
run(${CMAKE_COMMAND} --build ${SCRATCH}/build)
run(${SCRATCH}/build/consumer_cc)
run(${SCRATCH}/build/consumer_c)
if(CCCL)
  run(${SCRATCH}/build/consumer_resource)
endif()
if(TORCH)
  run(${SCRATCH}/build/consumer_torch)
endif()
run(${prefix}/bin/gpuledger --version)
