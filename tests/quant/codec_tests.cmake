gpuledger_test(safetensors_test SOURCES safetensors_test.cc)
gpuledger_test(model_source_test SOURCES model_source_test.cc)

# The reference is private: these tests compile their own copy.
add_library(codec_reference OBJECT ${PROJECT_SOURCE_DIR}/quant/codec_reference.cc)
target_include_directories(codec_reference PUBLIC ${PROJECT_SOURCE_DIR}/quant)
target_link_libraries(codec_reference PUBLIC gpuledger::gpuledger)
target_compile_options(codec_reference PRIVATE -ffp-contract=off)
gpuledger_test(codec_simd_test SOURCES codec_simd_test.cc LIBRARIES codec_reference hwy::hwy)
gpuledger_test(codec_test SOURCES codec_test.cc codec_cuda_dialect_test.cc codec_c_api_test.cc codec_yardstick_test.cc
               LIBRARIES codec_reference)
gpuledger_test(checkpoint_writer_test SOURCES checkpoint_writer_test.cc checkpoint_safety_test.cc
               LIBRARIES nlohmann_json::nlohmann_json)

# Below the shared library's surface: these see private headers.
add_executable(quant_state_test quant_state_test.cc)
target_link_libraries(quant_state_test PRIVATE gpuledger_internals GTest::gtest GTest::gmock GTest::gtest_main)
gtest_discover_tests(quant_state_test DISCOVERY_TIMEOUT 60 PROPERTIES LABELS cpu TIMEOUT 600)
add_executable(rewrite_checkpoint rewrite_checkpoint.cc)
target_link_libraries(rewrite_checkpoint PRIVATE gpuledger_internals)
