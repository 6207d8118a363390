# What `pip install .` puts into the Python package's folder: the libraries and the command (pyproject.toml).
set(wheel_targets gpuledger gpuledger_cli)
if(TARGET gpuledger_torch)
  list(APPEND wheel_targets gpuledger_torch)
endif()
add_custom_target(gpuledger_wheel DEPENDS ${wheel_targets})
set_target_properties(${wheel_targets} PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../lib")
install(TARGETS ${wheel_targets} LIBRARY DESTINATION gpuledger/lib COMPONENT wheel
                                 RUNTIME DESTINATION gpuledger/bin COMPONENT wheel)
