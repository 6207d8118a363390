gpuledger_test(nf4_test SOURCES nf4_test.cc)
gpuledger_test(safetensors_test SOURCES safetensors_test.cc)
gpuledger_test(checkpoint_writer_test SOURCES checkpoint_writer_test.cc LIBRARIES nlohmann_json::nlohmann_json)
