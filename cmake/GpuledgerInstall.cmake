# cmake --install: libraries, public headers, the command, and a package config (find_package(gpuledger CONFIG)).
# Exported: gpuledger::gpuledger, gpuledger::resource (headers; CCCL is the user's), and gpuledger::torch as component `torch`.
# tests/consumer/ uses what lands here.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gpuledger)

install(TARGETS gpuledger EXPORT gpuledgerTargets)
if(TARGET gpuledger_resource)
  install(TARGETS gpuledger_resource EXPORT gpuledgerTargets)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/allocator/resource/include/ TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
endif()
install(EXPORT gpuledgerTargets NAMESPACE gpuledger:: DESTINATION ${package_dir})

foreach(layer IN ITEMS allocator quant tracing)
  if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/${layer}/include)
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/${layer}/include/ TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
  endif()
endforeach()

if(TARGET gpuledger_torch)
  # Beside our own libraries it finds LibTorch where it was built against it.
  set_target_properties(gpuledger_torch PROPERTIES EXPORT_NAME torch INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS gpuledger_torch EXPORT gpuledgerTorchTargets)
  install(EXPORT gpuledgerTorchTargets NAMESPACE gpuledger:: DESTINATION ${package_dir})
  install(FILES ${CMAKE_CURRENT_LIST_DIR}/FindTorchWheel.cmake DESTINATION ${package_dir})
  if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/allocator/torch/include)
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/allocator/torch/include/ TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
  endif()
endif()

if(TARGET gpuledger_torch_cuda)  # loaded at run time, never linked: not part of the package config
  install(TARGETS gpuledger_torch_cuda)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/allocator/torch/cuda/include/ TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
endif()

if(TARGET gpuledger_cli)
  install(TARGETS gpuledger_cli)
endif()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/gpuledgerConfig.cmake.in
  ${PROJECT_BINARY_DIR}/gpuledgerConfig.cmake INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may change anything.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gpuledgerConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/gpuledgerConfig.cmake ${PROJECT_BINARY_DIR}/gpuledgerConfigVersion.cmake
        DESTINATION ${package_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
