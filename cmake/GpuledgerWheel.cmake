# What `pip install .` puts into the Python package's folder: the libraries and the command (pyproject.toml).
set(wheel_targets gpuledger gpuledger_cli)
foreach(part IN ITEMS gpuledger_torch gpuledger_torch_cuda)
  if(TARGET ${part})
    list(APPEND wheel_targets ${part})
  endif()
endforeach()
add_custom_target(gpuledger_wheel DEPENDS ${wheel_targets})
set_target_properties(${wheel_targets} PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../lib")
install(TARGETS ${wheel_targets} LIBRARY DESTINATION gpuledger/lib COMPONENT wheel
                                 RUNTIME DESTINATION gpuledger/bin COMPONENT wheel)
