# The tests of the upstreams that need no GPU; included by tests/allocator/CMakeLists.txt.
set(upstream_tests ${CMAKE_CURRENT_LIST_DIR})
gpuledger_test(upstream_contract_test SOURCES ${upstream_tests}/upstream_contract_test.cc)
gpuledger_test(fake_upstream_test SOURCES ${upstream_tests}/fake_upstream_test.cc)
gpuledger_test(host_upstream_test SOURCES ${upstream_tests}/host_upstream_test.cc)
